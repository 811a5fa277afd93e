//! A hub on this machine: an HTTP server of a few lines that can do what real ones do wrong.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// What a path is answered with.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// The file.
    pub bytes: Vec<u8>,
    /// The headers that go with it.
    pub headers: Vec<(&'static str, String)>,
    /// Asked for a part, it sends all.
    pub ignores_range: bool,
    /// So many bytes of an answer, then the connection ends: one for each of the first answers.
    pub drops: Vec<usize>,
    /// So many bytes of an answer, then silence until the hub is dropped.
    pub stalls: Option<usize>,
    /// Another status than 200, 206 or 416: one for each of the first answers.
    pub refusals: Vec<u16>,
    /// The answer is a redirect to there.
    pub location: Option<String>,
}

impl Served {
    /// A file without anything odd.
    pub fn file(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), headers: vec![("ETag", "\"v1\"".into())], ..Self::default() }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// With a slash in front.
    pub path: String,
    /// By their small-letter names.
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    served: Mutex<BTreeMap<String, Served>>,
    asked: Mutex<Vec<Asked>>,
    is_over: Mutex<bool>,
    over: Condvar,
}

/// A running server.
pub struct Hub {
    address: String,
    state: Arc<State>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::start()
    }
}

impl Hub {
    /// On a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that leaves in the middle is no concern of the server's.
                std::thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { address, state }
    }

    /// Its address, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `path` is answered so.
    pub fn serve(&self, path: &str, served: Served) {
        self.state.served.lock().unwrap().insert(path.to_owned(), served);
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        *self.state.is_over.lock().unwrap() = true;
        self.state.over.notify_all();
    }
}

fn answer(stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    state.asked.lock().unwrap().push(Asked { path: path.clone(), headers: headers.clone() });
    let mut stream = stream;
    let mut send = |status: u16, headers: &[(&str, String)], body: &[u8]| -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {status} told\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(body)?;
        stream.flush()
    };
    let none = || vec![("Content-Length", "0".to_owned())];
    let (served, cut, refusal) = {
        let mut all = state.served.lock().unwrap();
        let Some(served) = all.get_mut(&path) else {
            drop(all);
            return send(404, &none(), b"");
        };
        let refusal = (!served.refusals.is_empty()).then(|| served.refusals.remove(0));
        let cut = (refusal.is_none() && !served.drops.is_empty()).then(|| served.drops.remove(0));
        (served.clone(), cut, refusal)
    };
    if let Some(status) = refusal {
        return send(status, &none(), b"");
    }
    let mut told = served.headers.clone();
    if let Some(location) = &served.location {
        told.push(("Location", location.clone()));
        told.extend(none());
        return send(302, &told, b"");
    }
    let total = served.bytes.len();
    let start = headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let tag = served.headers.iter().find(|h| h.0 == "ETag").map(|h| &h.1);
    let is_same = headers.get("if-range").is_none_or(|wanted| Some(wanted) == tag);
    let (status, start) = match start {
        Some(start) if !served.ignores_range && is_same => {
            if start >= total {
                told.push(("Content-Range", format!("bytes */{total}")));
                told.extend(none());
                return send(416, &told, b"");
            }
            told.push(("Content-Range", format!("bytes {start}-{}/{total}", total - 1)));
            (206, start)
        }
        _ => (200, 0),
    };
    let body = &served.bytes[start..];
    told.push(("Content-Length", body.len().to_string()));
    let cut = cut.or(served.stalls).unwrap_or(body.len()).min(body.len());
    send(status, &told, &body[..cut])?;
    if served.stalls.is_some() {
        let is_over = state.is_over.lock().unwrap();
        drop(state.over.wait_while(is_over, |is_over| !*is_over));
    }
    Ok(())
}
