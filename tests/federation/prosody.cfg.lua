-- Debian's configuration, except for what a network without the world needs. @NAMES@ are filled in.
run_as_root = true
pidfile = "@DIRECTORY@/prosody.pid"
data_path = "@DIRECTORY@/data"
plugin_paths = { "@DIRECTORY@/modules" }
certificates = "@DIRECTORY@/certificates"
log = { debug = "@LOG@" }

modules_enabled = {
	"disco"; "roster"; "saslauth"; "tls"; "blocklist"; "bookmarks"; "carbons"; "dialback"; "limits";
	"pep"; "private"; "smacks"; "vcard4"; "vcard_legacy"; "csi_simple"; "ping"; "time"; "uptime";
	"version"; "posix"; "mam";
	"cloud_notify"; -- what is tested: from prosody-modules
	"log_routes"; -- shows in the log what is published
	"stanza_debug"; -- and how it is answered
	@MODULES@
}
limits = { c2s = { rate = "10kb/s" }; s2sin = { rate = "30kb/s" } }
authentication = "internal_plain"

component_interfaces = { "*" }
s2s_ports = { @S2S_PORT@ }
s2s_secure_auth = @S2S_SECURE_AUTH@
ssl = { cafile = "@CA_FILE@" }

-- libunbound answers for .test by itself (RFC 6761) unless told to ask.
unbound = { resolvconf = true; hoststxt = true; options = { ["local-zone:"] = "test. transparent" } }

@MORE@

VirtualHost "@DOMAIN@"
@COMPONENT@
