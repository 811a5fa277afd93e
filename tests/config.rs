//! Settings: every error at once, with its line and the nearest known key; overrides; the plan.

use pipeline::{
    config::{Config, Override},
    engines::Wanted,
};
use stages::decode::sample::Sampling;

const SMALLEST: &str = "[input]\nclips = \"clips\"\n[output]\ndir = \"out\"\n";

fn parse(text: &str, overrides: &[&str]) -> Result<Config, String> {
    let overrides: Vec<Override> = overrides.iter().map(|o| o.parse().unwrap()).collect();
    Config::parse("run.toml", text, &overrides, 4).map_err(|e| e.to_string())
}

#[track_caller]
fn check_errors(text: &str, overrides: &[&str], want: &str) {
    let found = parse(text, overrides).expect_err("has errors");
    assert_eq!(found.trim(), want.trim());
}

#[test]
fn the_smallest_configuration_gets_all_defaults() {
    let config = parse(SMALLEST, &[]).unwrap();
    assert_eq!(config.sampling, Sampling::EveryMs(500));
    assert_eq!(config.decode.workers, 4);
    let open = Wanted { min_cosine: 0.995, ..Wanted::default() };
    assert_eq!(config.encode.engine, open, "the engine is left to be measured");
    let plan: Vec<String> =
        config.settings.iter().map(|s| format!("{} = {} ({})", s.key, s.value, s.from)).collect();
    insta::assert_snapshot!(plan.join("\n"), @r#"
    input.clips = "clips" (line 2)
    input.label = "auto" (default)
    output.dir = "out" (line 4)
    sample.every_ms = 500 (default)
    load.workers = 1 (default)
    load.ahead_mib = 64 (default)
    decode.backend = "auto" (default)
    decode.matrix = "bt601" (default)
    decode.damaged = "keep" (default)
    decode.fields = "first" (default)
    decode.workers = 0 (default)
    decode.sessions = 8 (default)
    decode.threads = 0 (default)
    decode.plan = true (default)
    decode.stall_s = 20 (default)
    decode.ahead_mib = 64 (default)
    encode.backend = "auto" (default)
    encode.precision = "auto" (default)
    encode.model = "efficientnet-lite0-minilm" (default)
    encode.batch = 0 (default)
    encode.workers = 0 (default)
    encode.threads = 0 (default)
    encode.min_cosine = 0.995 (default)
    encode.devices = "auto" (default)
    gpu.devices = "auto" (default)
    gpu.memory_mib = 0 (default)
    index.shard_rows = 100000 (default)
    index.embedding = "float16" (default)
    index.keep_image_embedding = false (default)
    index.vectors = true (default)
    index.exact_rows = 200000 (default)
    index.recall = 0.99 (default)
    "#);
}

#[test]
fn all_errors_are_told_at_once_with_their_lines() {
    let text = "\
[input]
clip = \"data\"

[sample]
every_ms = 0
count = 4

[decode]
workers = 1.5
matrix = \"bt610\"
stal_s = 3
keep_image_embeding = true

[encode]
batch = \"eight\"
threads = 9999
";
    check_errors(
        text,
        &[],
        "\
run.toml: input.clips is missing
run.toml: output.dir is missing
run.toml:2: unknown key input.clip; did you mean input.clips?
run.toml:5: sample.every_ms is 0, needs a whole number from 1 to 86400000
run.toml:9: decode.workers is 1.5, needs a whole number from 0 to 256
run.toml:10: decode.matrix is \"bt610\", needs one of bt601, bt709, bt2020; did you mean \"bt601\"?
run.toml:11: unknown key decode.stal_s; did you mean decode.stall_s?
run.toml:12: unknown key decode.keep_image_embeding; did you mean index.keep_image_embedding?
run.toml:15: encode.batch is \"eight\", needs a whole number from 0 to 1024
run.toml:16: encode.threads is 9999, needs a whole number from 0 to 256",
    );
}

#[test]
fn two_sampling_rules_are_one_too_many() {
    let text = format!("{SMALLEST}[sample]\nevery_ms = 100\nfps = 2.0\n");
    check_errors(
        &text,
        &[],
        "run.toml:7: only one rule can choose the frames, but there are sample.every_ms and sample.fps",
    );
}

#[test]
fn broken_toml_names_its_line() {
    let found = parse("[input]\nclips = \"a\nb = 1\n", &[]).unwrap_err();
    assert!(found.starts_with("run.toml:2: "), "{found}");
}

#[test]
fn an_override_replaces_the_file_and_is_checked_like_it() {
    let text = format!("{SMALLEST}[sample]\nevery_ms = 100\n");
    let config = parse(&text, &["sample.count=8", "input.clips=other clips", "decode.workers=3"]).unwrap();
    assert_eq!(config.sampling, Sampling::Count(8));
    assert_eq!((config.input.clips.as_str(), config.decode.workers), ("other clips", 3));
    check_errors(
        &text,
        &["decode.worker=3"],
        "--set: unknown key decode.worker; did you mean decode.workers?",
    );
    check_errors(
        &text,
        &["decode.workers=-3"],
        "--set: decode.workers is -3, needs a whole number from 0 to 256",
    );
    assert!("no equals sign".parse::<Override>().is_err());
}

#[test]
fn every_rule_can_be_asked_for() {
    let rules = [
        ("every_ms = 40", Sampling::EveryMs(40)),
        ("fps = 2", Sampling::Fps(2.0)),
        ("fps = 0.5", Sampling::Fps(0.5)),
        ("count = 8", Sampling::Count(8)),
        ("keyframes = true", Sampling::Keyframes),
        ("all = true", Sampling::All),
        ("all = false", Sampling::EveryMs(500)),
    ];
    for (rule, want) in rules {
        let config = parse(&format!("{SMALLEST}[sample]\n{rule}\n"), &[]).unwrap();
        assert_eq!(config.sampling, want, "{rule}");
        // What run.json keeps leads back to the same rule.
        let settings = config.settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
        assert_eq!(pipeline::config::recorded_sampling(&settings), Some(want), "{rule}");
    }
}

/// Any bytes are a configuration or errors, never a panic.
#[test]
fn any_text_is_answered() {
    use proptest::prelude::*;
    let words = prop::sample::select(vec![
        "[input]", "[decode]", "[[a]]", "clips", "workers", "=", "\"", "'", "1", "-1e9", "true", "\n", "#",
        ".", "é", "\0", "{", "}",
    ]);
    proptest!(|(parts in prop::collection::vec(words, 0..40))| {
        let text = parts.join(" ");
        let _ = parse(&text, &[]);
    });
}
