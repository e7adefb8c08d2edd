//! The way out through an HTTP proxy (RFC 9110 §9.3.6).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::{Authority, Scheme, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Error;

/// Most bytes of a proxy's answer.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// The port that is meant when a proxy names none.
const HTTP: u16 = 80;

/// A proxy to ask for each connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Proxy {
    /// Name or address to connect to.
    pub(crate) host: String,
    /// Port to connect to.
    pub(crate) port: u16,
    /// The value of `proxy-authorization`. Never logged.
    credentials: Option<String>,
}

impl Proxy {
    /// Reads `http://host:port`.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn new(url: &str) -> Result<Self, &'static str> {
        const FORM: &str = "write it as http://host:port";
        let uri: Uri = url.parse().map_err(|_| FORM)?;
        let authority = uri.authority().ok_or(FORM)?;
        if uri.scheme() != Some(&Scheme::HTTP) || !matches!(uri.path(), "" | "/") {
            return Err(FORM);
        }
        if authority.as_str().contains('@') {
            return Err("put user:password into proxy_credentials_file, where no log shows them");
        }
        Ok(Self {
            host: bare_host(authority).to_owned(),
            port: authority.port_u16().unwrap_or(HTTP),
            credentials: None,
        })
    }

    /// Takes `user:password` from the first line of a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub(crate) fn with_credentials(mut self, file: &Path) -> Result<Self, String> {
        let text = files::read_text(file, files::SMALL).map_err(|error| error.to_string())?;
        let line = text.lines().next().unwrap_or_default();
        if !line.contains(':') {
            return Err("holds no line user:password".to_owned());
        }
        self.credentials = Some(format!("Basic {}", STANDARD.encode(line)));
        Ok(self)
    }

    /// Asks for a tunnel to the endpoint.
    ///
    /// # Errors
    /// The proxy says no, or nothing that can be understood.
    pub(crate) async fn tunnel<S>(&self, stream: &mut S, host: &str, port: u16) -> Result<(), Error>
    where
        S: AsyncReadExt + AsyncWriteExt + Unpin,
    {
        let target = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(credentials) = &self.credentials {
            request.push_str("Proxy-Authorization: ");
            request.push_str(credentials);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(Error::Connect)?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            // One by one, because what follows belongs to TLS. It is a hundred bytes per connection.
            let byte = stream.read_u8().await.map_err(Error::Connect)?;
            answer.push(byte);
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(Error::ProxyUnclear);
            }
        }
        match status(&answer) {
            Some(200..=299) => Ok(()),
            Some(status) => Err(Error::ProxyRefused { status }),
            None => Err(Error::ProxyUnclear),
        }
    }
}

/// The status of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let status = rest.split(' ').next()?;
    (version.starts_with("HTTP/1.") && status.len() == 3)
        .then(|| status.parse().ok())
        .flatten()
}

/// The host of an authority: an IPv6 address stands in brackets there and nowhere else.
pub(crate) fn bare_host(authority: &Authority) -> &str {
    let host = authority.host();
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[track_caller]
    fn check_url(url: &str, expected: Result<(&str, u16), &str>) {
        match (Proxy::new(url), expected) {
            (Ok(proxy), Ok(expected)) => {
                assert_eq!((proxy.host.as_str(), proxy.port), expected, "{url}");
            }
            (Err(problem), Err(expected)) => assert!(problem.contains(expected), "{problem}"),
            (got, _) => panic!("{url}: {:?}", got.map(|proxy| proxy.host)),
        }
    }

    #[test]
    fn urls() {
        check_url("http://proxy.example:3128", Ok(("proxy.example", 3128)));
        check_url("http://proxy.example/", Ok(("proxy.example", 80)));
        check_url("http://[::1]:3128", Ok(("::1", 3128)));
        check_url("proxy.example:3128", Err("http://host:port"));
        check_url("https://proxy.example:3128", Err("http://host:port"));
        check_url("http://proxy.example:3128/path", Err("http://host:port"));
        check_url(
            "http://user:word@proxy.example",
            Err("proxy_credentials_file"),
        );
    }

    async fn check(answer: &str, expected: &str) {
        let (mut ours, mut theirs) = duplex(1024);
        let proxy = Proxy::new("http://proxy.example:3128").unwrap();
        theirs.write_all(answer.as_bytes()).await.unwrap();
        drop(theirs.shutdown().await);
        let got = match proxy.tunnel(&mut ours, "api.push.apple.com", 443).await {
            Ok(()) => "tunnel".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{answer:?}: {got}");
    }

    #[actix::test]
    async fn answers() {
        check("HTTP/1.1 200 Connection established\r\n\r\n", "tunnel").await;
        check("HTTP/1.0 200 OK\r\nVia: x\r\n\r\nTLS", "tunnel").await;
        check("HTTP/1.1 407 Who?\r\n\r\n", "407").await;
        check("HTTP/1.1 503\r\n\r\n", "503").await;
        check("SSH-2.0\r\n\r\n", "does not speak HTTP").await;
        check("HTTP/1.1 20", "cannot connect").await;
    }

    #[actix::test]
    async fn credentials_come_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("credentials");
        let proxy = || Proxy::new("http://proxy.example:3128").unwrap();
        std::fs::write(&file, "no colon").unwrap();
        assert!(proxy().with_credentials(&file).is_err());
        std::fs::write(&file, "user:word\n").unwrap();
        let proxy = proxy().with_credentials(&file).unwrap();
        let (mut ours, mut theirs) = duplex(1024);
        theirs.write_all(b"HTTP/1.1 200\r\n\r\n").await.unwrap();
        proxy.tunnel(&mut ours, "::1", 2197).await.unwrap();
        let mut request = vec![0; 512];
        let read = theirs.read(&mut request).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&request[..read]).unwrap(),
            "CONNECT [::1]:2197 HTTP/1.1\r\nHost: [::1]:2197\r\n\
             Proxy-Authorization: Basic dXNlcjp3b3Jk\r\n\r\n"
        );
    }
}
