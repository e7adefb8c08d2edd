-- Logs what is for other servers before it waits for a stream, and what is for a component: where
-- mod_stanza_debug does not see it.
local function log_route(event)
	module:log("debug", "ROUTE: %s", tostring(event.stanza));
end

module:hook("route/remote", log_route, 1000);
if module:get_host_type() == "component" then
	module:hook("iq/host", log_route, 1000);
end
