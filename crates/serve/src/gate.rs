//! Who may come in: the checks that every request passes before anything else looks at it.

use crate::Refusal;
use hyper::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};

/// Who is let in, and by which names this server is called.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// What the `Host` of a request may be, without its port: another name is a web page that had its own name point
    /// here.
    pub hosts: Vec<String>,
    /// Keys of programs, as their SHA-256; `None` opens `/v1` to whoever reaches this server.
    pub keys: Option<Vec<[u8; 32]>>,
    /// People, each with a token.
    pub labelers: Vec<Labeler>,
}

/// A person who gives feedback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labeler {
    /// The name under which what they say is kept.
    pub id: String,
    /// SHA-256 of their token.
    pub token: [u8; 32],
    /// Whether they see what others did, and may take everything out.
    pub is_admin: bool,
}

/// The name of the cookie that holds a labeler's token: with the port, because browsers keep cookies of all ports of a
/// host together, and another server may run beside this one.
pub(crate) fn cookie_name(headers: &HeaderMap) -> String {
    let host = text(headers, header::HOST.as_str()).unwrap_or_default();
    let port =
        host.rsplit_once(':').map(|(_, port)| port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    format!("instruct-{}", port.unwrap_or("80"))
}

/// SHA-256 of a token or key.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl Gate {
    /// Refuses what a web page of another origin could have sent.
    pub(crate) fn check_origin(&self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = text(headers, header::HOST.as_str()).unwrap_or_default();
        let name =
            host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |x| x.0);
        if !self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            let message = "this server is not called so; start it with --host to add a name";
            return Err(Refusal::new(403, message).with_code("unknown_host"));
        }
        if let Some(origin) = text(headers, header::ORIGIN.as_str())
            && origin.split_once("://").is_none_or(|(_, of)| !of.eq_ignore_ascii_case(host))
        {
            return Err(Refusal::new(403, "pages of other origins may not ask this server").with_code("other_origin"));
        }
        let site = text(headers, "sec-fetch-site");
        if *method != Method::GET && site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(Refusal::new(403, "pages of other sites may not ask this server").with_code("other_origin"));
        }
        Ok(())
    }

    /// Refuses a body that is not JSON by its own account, which a page of another origin could send unasked.
    pub(crate) fn check_json(headers: &HeaderMap) -> Result<(), Refusal> {
        let kind = text(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
        match kind.split(';').next().map(str::trim) {
            Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
            _ => Err(Refusal::new(415, "the body must be JSON, with content-type application/json")),
        }
    }

    /// The labeler whose token the cookie of a request holds.
    pub(crate) fn check_labeler(&self, headers: &HeaderMap) -> Result<&Labeler, Refusal> {
        let message = "there is no session here; open the link that the server printed, or ask whoever runs it for one";
        self.labeler(headers).ok_or_else(|| Refusal::new(401, message).with_code("no_session"))
    }

    /// The labeler whose token the cookie of a request holds.
    pub(crate) fn labeler(&self, headers: &HeaderMap) -> Option<&Labeler> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let own = cookie_name(headers);
        pairs.find(|(name, _)| *name == own).and_then(|(_, token)| self.of_token(token))
    }

    /// The labeler of a token. Digests are compared, so that how long it takes says nothing of a token.
    pub(crate) fn of_token(&self, token: &str) -> Option<&Labeler> {
        let digest = digest(token);
        self.labelers.iter().find(|labeler| labeler.token == digest)
    }

    /// Refuses a program without a key, where there are keys. A labeler's cookie is as good as one.
    pub(crate) fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(keys) = &self.keys else { return Ok(()) };
        if self.labeler(headers).is_some() {
            return Ok(());
        }
        let bearer = text(headers, header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        match bearer.map(|key| digest(key.trim())) {
            Some(digest) if keys.contains(&digest) => Ok(()),
            _ => Err(Refusal::new(401, "this server wants an API key: `Authorization: Bearer KEY`")
                .with_code("invalid_api_key")),
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    /// Whether a request with these headers comes from a page of this server, or from no page.
    #[track_caller]
    fn check_origin(method: Method, pairs: &[(&'static str, &str)], wanted: Option<u16>) {
        let gate = Gate { hosts: vec!["127.0.0.1".into(), "localhost".into(), "[::1]".into()], ..Gate::default() };
        let found = gate.check_origin(&method, &headers(pairs)).err().map(|refusal| refusal.status);
        assert_eq!(found, wanted, "{pairs:?}");
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        check_origin(Method::GET, &[("host", "127.0.0.1:8080")], None);
        check_origin(Method::GET, &[("host", "LocalHost")], None);
        check_origin(Method::GET, &[("host", "[::1]:8080")], None);
        check_origin(Method::GET, &[], Some(403));
        check_origin(Method::GET, &[("host", "evil.example:8080")], Some(403));
        check_origin(Method::GET, &[("host", "127.0.0.1.evil.example")], Some(403));
        let page = |origin: &'static str| [("host", "localhost:8080"), ("origin", origin)];
        check_origin(Method::POST, &page("http://localhost:8080"), None);
        check_origin(Method::POST, &page("http://localhost:9090"), Some(403));
        check_origin(Method::POST, &page("https://evil.example"), Some(403));
        check_origin(Method::POST, &page("null"), Some(403));
        let site = |site: &'static str| [("host", "localhost:8080"), ("sec-fetch-site", site)];
        check_origin(Method::POST, &site("same-origin"), None);
        check_origin(Method::POST, &site("cross-site"), Some(403));
        check_origin(Method::GET, &site("cross-site"), None);
    }

    #[test]
    fn only_json_is_read() {
        let json = |kind: &'static str| Gate::check_json(&headers(&[("content-type", kind)])).is_ok();
        assert!(json("application/json") && json("Application/JSON; charset=utf-8"));
        assert!(!json("text/plain") && !json("application/x-www-form-urlencoded") && !json(""));
        assert!(Gate::check_json(&headers(&[])).is_err());
    }

    #[test]
    fn keys_and_cookies_open() {
        let labeler = Labeler { id: "local".into(), token: digest("t0ken"), is_admin: true };
        let gate = Gate { keys: Some(vec![digest("k3y")]), labelers: vec![labeler.clone()], ..Gate::default() };
        let opens = |pairs: &[(&'static str, &str)]| gate.check_key(&headers(pairs)).is_ok();
        assert!(
            opens(&[("authorization", "Bearer k3y")])
                && opens(&[("host", "localhost:81"), ("cookie", "instruct-80=x; instruct-81=t0ken")])
        );
        assert!(!opens(&[]) && !opens(&[("authorization", "Bearer k3")]) && !opens(&[("authorization", "k3y")]));
        assert!(!opens(&[("cookie", "instruct-80=k3y")]) && !opens(&[("cookie", "other=t0ken")]));
        assert_eq!(gate.labeler(&headers(&[("cookie", "instruct-80=t0ken")])), Some(&labeler));
        assert!(Gate::default().check_key(&headers(&[])).is_ok());
    }
}
