-- Logs what is for other servers before it waits for a stream, where mod_stanza_debug does not see it.
module:hook("route/remote", function (event)
	module:log("debug", "ROUTE: %s", tostring(event.stanza));
end, 1000);
