//! The model store: what a hub sends arrives whole, checked and pinned, or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pipeline::store::{self, Request, hub::Patience};
use sha2::{Digest as _, Sha256};
use stages::model::{Card, Home};
use support::{
    clips::{BLUE, Clip, MPEG4_AVI, RED, make_at},
    hub::{Hub, Served},
    onnx::{write_clip_model, write_image_model},
    run::{LIMIT, Outcome, Site, binary, outcome, wait},
};

const TOKEN: &str = "hf_this_is_secret";

/// A home, a hub with the tiny CLIP-shaped model, and a card that names them.
struct Ground {
    folder: tempfile::TempDir,
    hub: Hub,
    files: Vec<(String, Vec<u8>)>,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_clip_model(&folder.path().join("made"));
        let files: Vec<(String, Vec<u8>)> = ["image.onnx", "text.onnx", "tokenizer.json"]
            .map(|name| (name.to_owned(), fs::read(folder.path().join("made").join(name)).unwrap()))
            .into();
        let ground = Self { folder, hub: Hub::start(), files };
        for (name, bytes) in &ground.files {
            ground.hub.serve(&address(name), Served::file(bytes));
        }
        ground.card(true);
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn models(&self) -> PathBuf {
        self.path("home/models")
    }

    fn bytes(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|f| f.0 == name).unwrap().1
    }

    /// Writes the card, with or without its pins.
    fn card(&self, has_pins: bool) -> String {
        let mut text = fs::read_to_string(self.path("made/model.toml")).unwrap();
        text += "[hub]\nrepo = \"owner/tiny\"\nrevision = \"0123abc\"\n";
        for (name, bytes) in &self.files {
            text += &format!("[[hub.files]]\npath = \"onnx/{name}\"\n");
            if has_pins {
                text += &format!("sha256 = \"{}\"\nsize = {}\n", sha256(bytes), bytes.len());
            }
        }
        fs::write(self.path("tiny.toml"), &text).unwrap();
        text
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("model").args(args);
        command.env("CLIPMILL_HOME", self.path("home")).env("HF_ENDPOINT", self.hub.url());
        command.env("HF_TOKEN", TOKEN).env("NO_PROXY", "127.0.0.1");
        command
    }

    fn model(&self, args: &[&str]) -> Outcome {
        outcome(self.command(args))
    }

    fn add(&self, args: &[&str]) -> Outcome {
        let card = self.path("tiny.toml");
        self.model(&[&["add", card.to_str().unwrap()], args].concat())
    }

    /// All files are there, as the hub has them, and nothing else is in the home.
    #[track_caller]
    fn is_whole(&self) {
        for (name, bytes) in &self.files {
            assert_eq!(fs::read(self.models().join("tiny").join(name)).unwrap(), *bytes, "{name}");
        }
        assert_eq!(names(&self.models()), ["tiny"]);
        let all = ["image.onnx", "model.toml", "pins.toml", "text.onnx", "tokenizer.json"];
        assert_eq!(names(&self.models().join("tiny")), all);
    }

    /// No model is there, for clipmill or for anybody who looks at the folder.
    #[track_caller]
    fn has_none(&self) {
        assert!(!self.models().join("tiny").exists());
        assert!(!self.model(&["list"]).expect(0).stdout.contains("tiny"));
    }
}

fn address(name: &str) -> String {
    format!("/owner/tiny/resolve/0123abc/onnx/{name}")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_comes_whole_from_a_hub() {
    let ground = Ground::new();
    let told =
        ground.add(&[]).expect(0).says(&["owner/tiny, revision 0123abc", "image.onnx:", "as by the card"]);
    assert!(
        told.stdout.starts_with("tiny ") && told.stdout.trim_end().ends_with("/home/models/tiny"),
        "{told:?}"
    );
    ground.is_whole();
    let asked = ground.hub.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|a| a.headers["authorization"] == format!("Bearer {TOKEN}")), "{asked:?}");
    assert!(ground.model(&["list"]).expect(0).stdout.contains("tiny"));
    assert!(ground.model(&["check", "tiny"]).expect(0).stdout.contains("3 files are as they were installed"));
    // Once more is refused before anything is asked for; and done, where it is meant.
    ground.add(&[]).expect(2).says(&["is installed already", "--force"]);
    assert_eq!(ground.hub.asked().len(), 0);
    ground.is_whole();
    ground.add(&["--force"]).expect(0);
    assert_eq!(ground.hub.asked().len(), 3);
    ground.is_whole();
}

#[test]
fn a_dropped_connection_goes_on_where_it_was() {
    let ground = Ground::new();
    let bytes = ground.bytes("image.onnx").to_vec();
    let [first, second] = [bytes.len() / 3, bytes.len() / 4];
    ground.hub.serve(&address("image.onnx"), Served { drops: vec![first, second], ..Served::file(&bytes) });
    ground.add(&[]).expect(0).says(&["trying again in 0.5 s"]);
    ground.is_whole();
    let asked = ground.hub.asked();
    let ranges: Vec<_> = asked[..3].iter().map(|a| a.headers.get("range").cloned()).collect();
    let from = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(first), from(first + second)]);
    assert!(asked[1..3].iter().all(|a| a.headers["if-range"] == "\"v1\""), "{asked:?}");
}

#[test]
fn an_interrupted_add_leaves_no_model_and_the_next_goes_on() {
    let ground = Ground::new();
    let bytes = ground.bytes("text.onnx").to_vec();
    let partial = ground.models().join(".tiny.partial/text.onnx.partial");
    for (signal, code) in [(libc::SIGINT, Some(130)), (libc::SIGKILL, None)] {
        ground.hub.serve(&address("text.onnx"), Served { stalls: Some(100), ..Served::file(&bytes) });
        let child = started(ground.command(&["add", ground.path("tiny.toml").to_str().unwrap()]));
        let since = Instant::now();
        let had = if code.is_some() { 100 } else { 200 };
        while fs::metadata(&partial).map_or(0, |m| m.len()) < had {
            assert!(since.elapsed() < LIMIT, "nothing came");
            std::thread::yield_now();
        }
        ground.has_none();
        // SAFETY: `kill` touches no memory of ours; the process is our child and not yet waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let told = wait(child, LIMIT);
        assert_eq!(told.code, code, "{told:?}");
        assert!(code.is_none() || told.stderr.contains("stopped; the same command goes on"), "{told:?}");
        ground.has_none();
    }
    ground.hub.asked();
    ground.hub.serve(&address("text.onnx"), Served::file(&bytes));
    ground.add(&[]).expect(0).says(&["image.onnx: here already", "going on from 200 B"]);
    let asked = ground.hub.asked();
    assert_eq!(asked[0].headers["range"], "bytes=200-", "{asked:?}");
    assert_eq!(asked.len(), 2, "{asked:?}");
    ground.is_whole();
}

fn started(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_hub_that_sends_no_parts_is_asked_for_all() {
    let ground = Ground::new();
    let bytes = ground.bytes("image.onnx").to_vec();
    let served = Served { drops: vec![500], ignores_range: true, ..Served::file(&bytes) };
    ground.hub.serve(&address("image.onnx"), served);
    ground.add(&[]).expect(0).says(&["from its start again"]);
    ground.is_whole();
    assert_eq!(ground.hub.asked()[1].headers["range"], "bytes=500-");
}

#[test]
fn a_file_that_changed_meanwhile_is_not_glued_together() {
    let ground = Ground::new();
    ground.card(false);
    let bytes = ground.bytes("image.onnx").to_vec();
    let mut old = bytes.clone();
    old[10] ^= 1;
    // One attempt gets a part of the old file; then the hub has the new one, under another tag.
    let one = |served| {
        ground.hub.serve(&address("image.onnx"), served);
        let patience = Patience { attempts: 1, ..Patience::default() };
        store_add(&ground, patience)
    };
    let told = one(Served { drops: vec![800], ..Served::file(&old) }).unwrap_err();
    assert!(told.contains("the connection") && told.contains("goes on from here"), "{told}");
    let new = Served { headers: vec![("ETag", "\"v2\"".into())], ..Served::file(&bytes) };
    one(new).unwrap();
    ground.is_whole();
    // The hub has nothing to tell versions apart: all is fetched again.
    fs::remove_dir_all(ground.models()).unwrap();
    ground.hub.asked();
    let bare = |bytes: &[u8]| Served { headers: Vec::new(), ..Served::file(bytes) };
    one(Served { drops: vec![800], ..bare(&old) }).unwrap_err();
    one(bare(&bytes)).unwrap();
    assert!(ground.hub.asked().iter().all(|a| !a.headers.contains_key("range")));
    ground.is_whole();
}

/// Adds within this process, where patience can be set.
fn store_add(ground: &Ground, patience: Patience) -> Result<(), String> {
    let home = Home::at(ground.path("home"));
    let request = Request {
        what: ground.path("tiny.toml").to_str().unwrap().to_owned(),
        from: Some(ground.hub.url()),
        patience,
        ..Request::default()
    };
    store::add(&home, &request).map(drop).map_err(|e| format!("{e:#}"))
}

#[test]
fn a_part_that_is_whole_already_is_only_checked() {
    let ground = Ground::new();
    // Without pins the hub is asked, and says that nothing is left.
    let text = ground.card(false);
    let staged = ground.models().join(".tiny.partial");
    fs::create_dir_all(&staged).unwrap();
    fs::write(staged.join("model.toml"), text).unwrap();
    fs::write(staged.join("image.onnx.partial"), ground.bytes("image.onnx")).unwrap();
    fs::write(staged.join("image.onnx.partial.tag"), "\"v1\"").unwrap();
    // And of this one more is here than the hub has.
    let longer = [ground.bytes("text.onnx"), b"more"].concat();
    fs::write(staged.join("text.onnx.partial"), longer).unwrap();
    fs::write(staged.join("text.onnx.partial.tag"), "\"v1\"").unwrap();
    ground.add(&[]).expect(0).says(&["the hub has less of it than is here"]);
    ground.is_whole();
    assert_eq!(ground.hub.asked().len(), 4);
}

#[test]
fn a_silent_hub_is_left() {
    let ground = Ground::new();
    let bytes = ground.bytes("image.onnx").to_vec();
    let short = Duration::from_millis(200);
    let patience = Patience { silence: short, pause: Duration::from_millis(1), attempts: 2 };
    ground.hub.serve(&address("image.onnx"), Served { stalls: Some(0), ..Served::file(&bytes) });
    let told = store_add(&ground, patience).unwrap_err();
    assert!(told.contains("image.onnx") && told.contains("timeout"), "{told}");
    ground.has_none();
}

#[test]
fn wrong_bytes_are_an_error_and_are_removed() {
    let ground = Ground::new();
    let bytes = ground.bytes("text.onnx").to_vec();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    ground.hub.serve(&address("text.onnx"), Served::file(&other));
    let [wanted, found] = [sha256(&bytes), sha256(&other)];
    ground.add(&[]).expect(2).says(&["onnx/text.onnx", &wanted, &found, "by the card; the file is removed"]);
    ground.has_none();
    assert_eq!(names(&ground.models().join(".tiny.partial")), ["image.onnx", "model.toml", "pins.toml"]);
    // Another length is told before anything is fetched, more than told after.
    ground.hub.serve(&address("text.onnx"), Served::file(&[&bytes[..], b"x"].concat()));
    let sizes = [format!("has {} bytes", bytes.len() + 1), format!("the card says {}", bytes.len())];
    ground.add(&[]).expect(2).says(&[&sizes[0], &sizes[1]]);
    ground.has_none();
    // What an earlier version left is found out at the end, and fetched again by itself.
    let staged = ground.models().join(".tiny.partial/text.onnx.partial");
    fs::write(&staged, &other[..300]).unwrap();
    ground.hub.serve(&address("text.onnx"), Served::file(&bytes));
    let mut start = other[..300].to_vec();
    start[0] ^= 1;
    fs::write(&staged, start).unwrap();
    ground.add(&[]).expect(0).says(&["fetching it again from its start"]);
    ground.is_whole();
}

#[test]
fn the_hash_that_the_hub_states_counts() {
    let ground = Ground::new();
    ground.card(false);
    let bytes = ground.bytes("image.onnx").to_vec();
    let linked = |sha256: String| Served {
        headers: vec![("X-Linked-Etag", format!("\"{sha256}\""))],
        location: Some(format!("{}/cdn/image", ground.hub.url())),
        ..Served::default()
    };
    ground.hub.serve("/cdn/image", Served::file(&bytes));
    ground.hub.serve(&address("image.onnx"), linked(sha256(b"another file")));
    ground.add(&[]).expect(2).says(&[&sha256(&bytes), &sha256(b"another file"), "by the hub"]);
    ground.has_none();
    ground.hub.serve(&address("image.onnx"), linked(sha256(&bytes)));
    ground.add(&[]).expect(0);
    ground.is_whole();
}

#[test]
fn what_no_card_pins_is_noted_and_then_compared() {
    let ground = Ground::new();
    ground.card(false);
    ground.add(&["--require-pins"]).expect(2).says(&["no sha256 is given for image.onnx, text.onnx"]);
    assert_eq!(ground.hub.asked().len(), 0);
    let bytes = ground.bytes("image.onnx").to_vec();
    let noted = format!("not pinned by the card; sha256 {} noted", sha256(&bytes));
    ground.add(&[]).expect(0).says(&[&noted]);
    let pins = fs::read_to_string(ground.models().join("tiny/pins.toml")).unwrap();
    assert!(pins.contains(&format!("\"image.onnx\" = \"{}\"", sha256(&bytes))), "{pins}");
    ground.model(&["check", "tiny"]).expect(0);
    // The same revision must go on giving the same bytes.
    let mut other = bytes.clone();
    other[20] ^= 1;
    ground.hub.serve(&address("image.onnx"), Served::file(&other));
    ground.add(&["--force"]).expect(2).says(&[&sha256(&bytes), &sha256(&other), "first fetched"]);
    ground.model(&["check", "tiny"]).expect(0);
    // A file that changes on the disk is found by `check`.
    fs::write(ground.models().join("tiny/image.onnx"), &other).unwrap();
    ground.model(&["check", "tiny"]).expect(2).says(&["image.onnx: sha256 is", "is not as it was installed"]);
}

#[test]
fn refusals_are_told_with_their_cure() {
    let ground = Ground::new();
    let bytes = ground.bytes("image.onnx").to_vec();
    let refuse = |refusals: &[u16]| {
        let served = Served { refusals: refusals.to_vec(), ..Served::file(&bytes) };
        ground.hub.serve(&address("image.onnx"), served);
        ground.hub.asked();
    };
    refuse(&[404]);
    ground.add(&[]).expect(2).says(&["onnx/image.onnx: the hub answered 404", "hint: the repository"]);
    assert_eq!(ground.hub.asked().len(), 1);
    refuse(&[401]);
    ground.add(&[]).expect(2).says(&["answered 401", "HF_TOKEN"]);
    refuse(&[503, 429]);
    ground.add(&[]).expect(0).says(&["answered 503", "answered 429", "trying again in 1 s"]);
    ground.is_whole();
    let mut command = ground.command(&["add", "clip-vit-b32"]);
    command.env("HF_ENDPOINT", "http://127.0.0.1:9");
    outcome(command)
        .expect(2)
        .says(&["cannot fetch http://127.0.0.1:9/Xenova/clip-vit-base-patch32", "--from"]);
    assert_eq!(names(&ground.models()), ["tiny"], "a hub out of reach leaves nothing");
    for base in ["ftp://x", "http://me:word@127.0.0.1", "no/such/folder"] {
        let told = ground.model(&["add", "clip-vit-b32", "--from", base]).expect(2);
        assert!(!told.stderr.contains("word@"), "{told:?}");
    }
}

#[test]
fn the_token_stays_with_its_host() {
    let ground = Ground::new();
    let other = Hub::start();
    let bytes = ground.bytes("image.onnx").to_vec();
    other.serve("/signed?key=1", Served { drops: vec![50], ..Served::file(&bytes) });
    let redirect = Served { location: Some(format!("{}/signed?key=1", other.url())), ..Served::default() };
    ground.hub.serve(&address("image.onnx"), redirect);
    let within = Served { location: Some("/within".into()), ..Served::default() };
    ground.hub.serve("/within", Served::file(ground.bytes("text.onnx")));
    ground.hub.serve(&address("text.onnx"), within);
    let mut command = ground.command(&["add", ground.path("tiny.toml").to_str().unwrap()]);
    command.env("RUST_LOG", "trace");
    let told = outcome(command).expect(0);
    ground.is_whole();
    let asked = other.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].headers["range"], "bytes=50-");
    assert!(asked.iter().all(|a| !a.headers.contains_key("authorization")), "{asked:?}");
    assert!(ground.hub.asked().iter().all(|a| a.headers.contains_key("authorization")));
    assert!(!told.stderr.contains(TOKEN), "the token is in the log");
}

#[test]
fn a_folder_of_the_repository_serves_as_a_hub() {
    let ground = Ground::new();
    fs::create_dir_all(ground.path("copy/onnx")).unwrap();
    for (name, bytes) in &ground.files {
        fs::write(ground.path("copy/onnx").join(name), bytes).unwrap();
    }
    let copy = ground.path("copy");
    ground.add(&["--from", copy.to_str().unwrap(), "--require-pins"]).expect(0);
    ground.is_whole();
    assert_eq!(ground.hub.asked().len(), 0);
    fs::remove_dir_all(ground.models()).unwrap();
    fs::remove_file(copy.join("onnx/text.onnx")).unwrap();
    ground.add(&["--from", copy.to_str().unwrap()]).expect(2).says(&["cannot read", "copy/onnx/text.onnx"]);
    ground.has_none();
}

#[test]
fn a_folder_is_checked_and_copied() {
    let ground = Ground::new();
    let made = ground.path("made");
    let made = made.to_str().unwrap();
    ground.model(&["add", made]).expect(0);
    ground.is_whole();
    ground.model(&["add", made]).expect(2).says(&["is installed already"]);
    ground.model(&["add", made, "--force"]).expect(0);
    ground.is_whole();
    ground.model(&["check", "tiny"]).expect(0);
    // A folder with pins of its own, or with a card that pins, must keep them.
    let text = ground.card(true);
    fs::write(ground.path("made/model.toml"), text).unwrap();
    fs::write(ground.path("made/text.onnx"), b"other").unwrap();
    ground.model(&["add", made, "--force"]).expect(2).says(&["made/text.onnx: sha256 is"]);
    ground.is_whole();
    fs::remove_file(ground.path("made/text.onnx")).unwrap();
    ground.model(&["add", made, "--force"]).expect(2).says(&["names the file text.onnx"]);
    ground.model(&["add", ground.path("home").to_str().unwrap()]).expect(2).says(&["has no model.toml"]);
    ground.model(&["add", "no-such-model"]).expect(2).says(&["known are: clip-vit-b32"]);
    ground.is_whole();
}

#[test]
fn a_removed_model_is_gone_and_nothing_else_is() {
    let ground = Ground::new();
    let made = ground.path("made");
    write_image_model(&ground.path("home/outside"));
    ground.model(&["add", made.to_str().unwrap()]).expect(0);
    for name in ["../outside", "tiny/..", ".", "..", "", "/etc", ".tiny.partial", "a b"] {
        ground.model(&["remove", name]).expect(2).says(&["is no model's name"]);
    }
    ground.model(&["remove", "other"]).expect(2).says(&["is not installed", "installed are: tiny"]);
    ground.is_whole();
    ground.model(&["remove", "tiny"]).expect(0).says(&["tiny: removed"]);
    assert_eq!(names(&ground.models()), [""; 0]);
    assert_eq!(names(&ground.path("home/outside")).len(), 2);
    // Of a link, the link goes.
    std::os::unix::fs::symlink(&made, ground.models().join("linked")).unwrap();
    ground.model(&["remove", "linked"]).expect(0);
    assert!(made.join("image.onnx").is_file() && names(&ground.models()).is_empty());
    // And what a stopped download left.
    fs::create_dir_all(ground.models().join(".tiny.partial/onnx")).unwrap();
    ground.model(&["remove", "tiny"]).expect(0).says(&["unfinished download is removed"]);
    assert_eq!(names(&ground.models()), [""; 0]);
}

#[test]
fn two_at_once_do_not_mix() {
    let ground = Ground::new();
    let bytes = ground.bytes("image.onnx").to_vec();
    ground.hub.serve(&address("image.onnx"), Served { stalls: Some(10), ..Served::file(&bytes) });
    let mut child = started(ground.command(&["add", ground.path("tiny.toml").to_str().unwrap()]));
    let since = Instant::now();
    while ground.hub.asked().is_empty() {
        assert!(since.elapsed() < LIMIT, "nothing was asked for");
        std::thread::yield_now();
    }
    ground.add(&[]).expect(2).says(&["is being added by another clipmill"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_disk_that_is_full_is_told_with_the_file() {
    let ground = Ground::new();
    let mut command = Command::new("bash");
    let card = ground.path("tiny.toml");
    // The limit on a file's size acts as a full disk does, but needs no disk.
    command.args(["-c", "ulimit -f 1; trap '' XFSZ; exec \"$0\" model add \"$1\""]);
    command.arg(binary()).arg(card);
    command.env("CLIPMILL_HOME", ground.path("home")).env("HF_ENDPOINT", ground.hub.url());
    outcome(command).expect(2).says(&["cannot write", "image.onnx.partial"]);
    ground.has_none();
    ground.add(&[]).expect(0).says(&["going on from 1.0 kB"]);
    ground.is_whole();
}

#[test]
fn every_known_card_is_listed_and_can_be_read() {
    let ground = Ground::new();
    let listed = ground.model(&["list"]).expect(0);
    let json: Vec<serde_json::Value> =
        serde_json::from_str(&ground.model(&["list", "--json"]).expect(0).stdout).unwrap();
    let folder = support::root().join("stages/models");
    let cards = names(&folder).into_iter().filter(|name| name.ends_with(".toml"));
    let mut n = 0;
    for file in cards {
        let text = fs::read_to_string(folder.join(&file)).unwrap();
        let card = Card::parse(&text).unwrap_or_else(|e| panic!("{file}: {e:#}"));
        assert_eq!(format!("{}.toml", card.name), file);
        assert!(
            listed.stdout.contains(&format!("\n{} ", card.name)) || listed.stdout.starts_with(&card.name)
        );
        let row = json.iter().find(|row| row["name"] == card.name.as_str()).unwrap();
        assert_eq!(row["installed"], false);
        if let Some(hub) = card.hub {
            assert!(hub.files.iter().all(|f| f.sha256.is_some() && f.size.is_some()), "{file} has no pins");
            assert!(hub.revision.len() == 40, "{file} names a branch");
            assert!(listed.stdout.contains(&format!("clipmill model add {}", card.name)), "{file}");
        }
        n += 1;
    }
    assert_eq!((n, json.len()), (5, 5));
    // A folder that cannot be used is told.
    fs::create_dir_all(ground.models().join("broken")).unwrap();
    ground.model(&["list"]).expect(0).says(&["models/broken: not usable: model card"]);
}

#[test]
fn cards_that_lead_elsewhere_are_refused() {
    let ground = Ground::new();
    let text = ground.card(true);
    let refuse = |from: &str, to: &str, says: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(ground.path("tiny.toml"), text.replacen(from, to, 1)).unwrap();
        ground.add(&[]).expect(2).says(&[says]);
    };
    refuse("name = \"tiny\"", "name = \"../tiny\"", "is no model's name");
    refuse("path = \"onnx/image.onnx\"", "path = \"onnx/image.onnx\"\nto = \"../x\"", "no path below");
    refuse("path = \"onnx/image.onnx\"", "path = \"/onnx/../image.onnx\"", "files.path is");
    refuse(
        "path = \"onnx/image.onnx\"",
        "path = \"onnx/other.onnx\"",
        "hub.files has nothing for image.onnx",
    );
    refuse("path = \"onnx/image.onnx\"", "path = \"onnx/text.onnx\"", "two files would be text.onnx");
    refuse("repo = \"owner/tiny\"", "repo = \"owner/tiny?x\"", "repo is");
    refuse("sha256 = \"", "sha256 = \"A", "64 small hexadecimal digits");
    refuse("[hub]", "[hub]\nbranch = 1", "unknown field");
    assert_eq!(ground.hub.asked().len(), 0);
}

#[test]
fn a_run_and_a_search_with_a_model_from_the_hub() {
    let ground = Ground::new();
    ground.add(&[]).expect(0);
    let site = Site::new();
    for (name, colour) in [("red", RED), ("blue", BLUE)] {
        make_at(&site.path(&format!("clips/{name}.avi")), &Clip::coloured(MPEG4_AVI, colour));
    }
    let config = site.config(&[("encode.model", "\"tiny\"")]);
    let out = site.path("out");
    for (args, says) in [
        (vec!["run", config.to_str().unwrap()], ""),
        (vec!["search", out.to_str().unwrap(), "blue", "-k", "1"], "blue.avi"),
    ] {
        let mut command = Command::new(binary());
        command.args(args).env("CLIPMILL_HOME", ground.path("home"));
        command.env("ORT_DYLIB_PATH", Home::from_env().onnxruntime());
        let told = outcome(command).expect(0);
        assert!(told.stdout.contains(says), "{told:?}");
    }
}
