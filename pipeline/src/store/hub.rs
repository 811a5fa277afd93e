//! Asking a hub for a file, or for the rest of it.
//!
//! Redirects are followed here and not by the HTTP library: a hub states a file's sha256 on the answer
//! that redirects, and its token must not follow to another host.

use std::{
    cell::Cell,
    env,
    fs::File,
    io::{Read, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use stages::model::{Hub, HubFile, hub::is_sha256};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
};

const PUBLIC_HUB: &str = "https://huggingface.co";
const MAX_REDIRECTS: usize = 10;
const OUT_OF_REACH: &str = "\nhint: --from URL or HF_ENDPOINT names another hub; --from DIR takes the repository's files from a folder";

/// How long to wait for a hub, and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, and between two pieces of an answer.
    pub silence: Duration,
    /// Before the second attempt; doubled for each further one.
    pub pause: Duration,
    /// So many attempts may fail in a row without a byte gained.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), pause: Duration::from_millis(500), attempts: 5 }
    }
}

/// Where files come from.
#[derive(Clone, Debug)]
pub enum Base {
    /// A hub's address, without a slash at its end.
    Url(String),
    /// Files by their path in the repository.
    Folder(PathBuf),
}

impl Base {
    /// An address or a folder; by default `$HF_ENDPOINT`, else the public hub.
    pub fn find(from: Option<&str>) -> Result<Self> {
        let from = from.map(str::to_owned).or_else(|| env::var("HF_ENDPOINT").ok().filter(|v| !v.is_empty()));
        let from = from.unwrap_or_else(|| PUBLIC_HUB.to_owned());
        if !from.contains("://") {
            let folder = PathBuf::from(&from);
            if !folder.is_dir() {
                bail!("{from} is neither a folder nor an address (https://...)");
            }
            return Ok(Self::Folder(folder));
        }
        let from = from.trim_end_matches('/').to_owned();
        // An address is printed; a password in it would be.
        if origin(&from).is_none_or(|origin| origin.contains('@')) {
            bail!(
                "a hub's address is http(s)://HOST[:PORT][/PATH] without a user's name; set HF_TOKEN to log in"
            );
        }
        Ok(Self::Url(from))
    }

    /// For people: where a repository's files come from.
    pub fn told(&self, hub: &Hub) -> String {
        match self {
            Self::Url(base) => format!("{base}/{}, revision {}", hub.repo, hub.revision),
            Self::Folder(folder) => folder.display().to_string(),
        }
    }

    /// For people and for requests: where a file is.
    pub fn place(&self, hub: &Hub, file: &HubFile) -> String {
        match self {
            Self::Url(base) => format!("{base}/{}/resolve/{}/{}", hub.repo, hub.revision, file.path),
            Self::Folder(folder) => folder.join(&file.path).display().to_string(),
        }
    }
}

/// Why a file did not come.
#[derive(Debug)]
pub enum Trouble {
    /// Another attempt may succeed; after this time, where the hub names one.
    Passing(anyhow::Error, Option<Duration>),
    /// None will.
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(e: anyhow::Error) -> Self {
        Self::Final(e)
    }
}

/// What a hub says to a request.
pub enum Got {
    /// Bytes.
    Answer(Answer),
    /// Nothing is missing; and the sha256 that the hub states.
    Complete(Option<String>),
    /// The file is shorter than what is here.
    Shorter,
}

/// A file's bytes from some place on.
pub struct Answer {
    /// The bytes.
    pub body: Box<dyn Read>,
    /// Where they start: 0 where the hub does not send parts.
    pub start: u64,
    /// Length of the whole file, where it is told.
    pub total: Option<u64>,
    /// Tells this content from another version's.
    pub validator: Option<String>,
    /// The sha256 that the hub states.
    pub sha256: Option<String>,
}

/// Part of a file is here already.
#[derive(Clone, Debug)]
pub struct Rest {
    /// So many bytes of it.
    pub have: u64,
    /// As the answer had it that they came from.
    pub validator: Option<String>,
}

/// Asks one hub.
pub struct Client {
    /// Which.
    pub base: Base,
    /// How long.
    pub patience: Patience,
    agent: Agent,
    token: Option<String>,
    /// The hub has answered at least once.
    is_reached: Cell<bool>,
}

impl Client {
    /// With `$HF_TOKEN`, where it is set.
    pub fn new(base: Base, patience: Patience) -> Result<Self> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(patience.silence))
            .timeout_connect(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .timeout_per_write(Some(patience.silence))
            .user_agent(concat!("clipmill/", env!("CARGO_PKG_VERSION")))
            // A company's own authority is known to the system, not to a list in this program.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .build();
        let token = env::var("HF_TOKEN").ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            bail!("HF_TOKEN has characters that no token has");
        }
        Ok(Self { base, patience, agent: agent.new_agent(), token, is_reached: Cell::new(false) })
    }

    /// Asks for a file, or for the rest of one.
    pub fn get(&self, hub: &Hub, file: &HubFile, rest: &Rest) -> Result<Got, Trouble> {
        let place = self.base.place(hub, file);
        match &self.base {
            Base::Folder(_) => {
                let open = || -> std::io::Result<Answer> {
                    let mut source = File::open(&place)?;
                    let total = source.metadata()?.len();
                    let start = rest.have.min(total);
                    source.seek(SeekFrom::Start(start))?;
                    let body = Box::new(source);
                    Ok(Answer { body, start, total: Some(total), validator: None, sha256: None })
                };
                Ok(Got::Answer(open().with_context(|| format!("cannot read {place}"))?))
            }
            Base::Url(_) => self.get_url(&place, rest),
        }
    }

    fn get_url(&self, place: &str, rest: &Rest) -> Result<Got, Trouble> {
        let mut url = place.to_owned();
        let mut sha256 = None;
        for hop in 0..=MAX_REDIRECTS {
            let answer = self.ask(&url, place, rest)?;
            if hop == 0 {
                sha256 = stated_sha256(answer.headers());
            }
            let status = answer.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return read_answer(answer, place, rest, sha256);
            }
            let location = text(answer.headers(), "location")
                .with_context(|| format!("{place}: redirected with {status}, but to nowhere"))?;
            let next = join(&url, location).with_context(|| format!("{place}: redirected to no address"))?;
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(anyhow!("{place}: redirected from https to plain http").into());
            }
            url = next;
        }
        Err(anyhow!("{place}: redirected more than {MAX_REDIRECTS} times").into())
    }

    fn ask(&self, url: &str, place: &str, rest: &Rest) -> Result<Response<Body>, Trouble> {
        // Compressed, a file's parts would not fit together.
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(place) && is_private(url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if rest.have > 0 {
            request = request.header("Range", format!("bytes={}-", rest.have));
            if let Some(validator) = &rest.validator {
                request = request.header("If-Range", validator);
            }
        }
        let asked = request.call();
        let is_reached = self.is_reached.replace(self.is_reached.get() || asked.is_ok());
        asked.map_err(|e| {
            let passes = match &e {
                ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
                // Certificates that are refused come as an I/O error as well.
                ureq::Error::Io(e) => e.kind() != std::io::ErrorKind::InvalidData,
                _ => false,
            };
            let e = anyhow!(e).context(format!("cannot fetch {place}"));
            // A hub that never answered is more likely out of reach than busy.
            if passes && is_reached {
                Trouble::Passing(e, None)
            } else if is_reached {
                Trouble::Final(e)
            } else {
                Trouble::Final(anyhow!("{e:#}{OUT_OF_REACH}"))
            }
        })
    }
}

fn read_answer(
    answer: Response<Body>,
    place: &str,
    rest: &Rest,
    sha256: Option<String>,
) -> Result<Got, Trouble> {
    let status = answer.status();
    let headers = answer.headers();
    let length = text(headers, "content-length").and_then(|n| n.parse().ok());
    let range = text(headers, "content-range").and_then(read_range);
    let (start, total) = match status {
        StatusCode::OK => (0, length),
        StatusCode::PARTIAL_CONTENT => match range {
            Some((Some(start), total)) => (start, total.or(length.map(|n: u64| n + start))),
            _ => return Err(anyhow!("{place}: sent a part without saying which").into()),
        },
        StatusCode::RANGE_NOT_SATISFIABLE if rest.have > 0 => {
            let is_whole = range.is_some_and(|(_, total)| total == Some(rest.have));
            return Ok(if is_whole { Got::Complete(sha256) } else { Got::Shorter });
        }
        status => return Err(refusal(status, headers, place)),
    };
    if start != 0 && start != rest.have {
        return Err(anyhow!("{place}: sent a part from {start} on, wanted {}", rest.have).into());
    }
    // A weak validator does not promise the same bytes.
    let etag = text(headers, "etag").filter(|tag| !tag.starts_with("W/"));
    let validator = etag.or_else(|| text(headers, "last-modified")).map(str::to_owned);
    let body = Box::new(answer.into_body().into_reader());
    Ok(Got::Answer(Answer { body, start, total, validator, sha256 }))
}

fn refusal(status: StatusCode, headers: &HeaderMap, place: &str) -> Trouble {
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "\nhint: set HF_TOKEN to a token that may read it"
        }
        StatusCode::NOT_FOUND => "\nhint: the repository, its revision or the file's path is another",
        _ => "",
    };
    let e = anyhow!("{place}: the hub answered {status}{hint}");
    let passes = matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504);
    let after = text(headers, "retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
    if passes { Trouble::Passing(e, after) } else { Trouble::Final(e) }
}

/// `X-Linked-Etag` is the sha256 of large files; an `ETag` of that form is as well.
fn stated_sha256(headers: &HeaderMap) -> Option<String> {
    let found = ["x-linked-etag", header::ETAG.as_str()].into_iter().filter_map(|name| text(headers, name));
    let mut found = found.map(|tag| tag.trim_matches('"').to_ascii_lowercase());
    found.find(|tag| is_sha256(tag))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `bytes 5-9/10` is (5, 10); `bytes */10` is (none, 10).
fn read_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-').and_then(|(start, _)| start.parse().ok()), total.parse().ok()))
}

/// `https://host:port` of an address.
fn origin(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let is_whole = matches!(scheme, "http" | "https") && !host.is_empty();
    is_whole.then(|| &url[..scheme.len() + 3 + host.len()])
}

/// Whether nobody on the way can read what is sent there.
fn is_private(url: &str) -> bool {
    let host = origin(url).and_then(|o| o.strip_prefix("http://"));
    host.is_none_or(|host| {
        host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
    })
}

/// The address that `location` means on an answer from `url`.
fn join(url: &str, location: &str) -> Option<String> {
    if location.contains("://") {
        return origin(location).map(|_| location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}//{rest}", url.split_once("//")?.0));
    }
    let origin = origin(url)?;
    if location.starts_with('/') {
        return Some(format!("{origin}{location}"));
    }
    let path = url[origin.len()..].split(['?', '#']).next()?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{origin}{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_a_browser_goes() {
        let url = "https://hub.example/a/b/resolve/main/c?x=1/2";
        for (location, wanted) in [
            ("https://cdn.example/c?sig=1", Some("https://cdn.example/c?sig=1")),
            ("//cdn.example/c", Some("https://cdn.example/c")),
            ("/api/c", Some("https://hub.example/api/c")),
            ("d", Some("https://hub.example/a/b/resolve/main/d")),
            ("ftp://cdn.example/c", None),
        ] {
            assert_eq!(join(url, location).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn origins_are_told_apart() {
        assert_eq!(origin("https://hub.example:8443/a?b"), Some("https://hub.example:8443"));
        assert_eq!(origin("https://"), None);
        assert_eq!(origin("file:///etc"), None);
        // The host that a token is for must not be the start of another's name.
        assert_ne!(origin("https://hub.example.evil/a"), origin("https://hub.example/a"));
        assert!(is_private("https://any.example/x") && is_private("http://127.0.0.1:80/x"));
        assert!(!is_private("http://hub.example/x"));
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(read_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(read_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(read_range("bytes */10"), Some((None, Some(10))));
        assert_eq!(read_range("lines 1-2/3"), None);
    }
}
