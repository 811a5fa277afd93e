//! Token ids: ours against those of the tokenizers that the models were trained with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stages::{
    encode::text::tokens::Tokens,
    model::{Home, Pool, TextTower},
};

/// A text tower without a tokenizer.
fn tower() -> TextTower {
    TextTower {
        file: String::new(),
        tokenizer: None,
        vocab: None,
        merges: None,
        sentencepiece: None,
        lowercase: false,
        strip_punctuation: false,
        input_ids: String::new(),
        attention_mask: None,
        token_type_ids: None,
        output: String::new(),
        pool: Pool::None,
        max_tokens: 77,
        pad_to: 77,
        pad_id: 0,
    }
}

fn golden(path: &Path) -> Vec<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(entry: &serde_json::Value) -> Vec<i64> {
    entry["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn clip_tokens_are_those_of_its_own_tokenizer() {
    let folder = Home::from_env().folder().join("clip-bpe");
    let files = ["vocab.json", "merges.txt"];
    if files.iter().any(|f| !folder.join(f).is_file()) {
        return support::skip(
            &format!("{} lacks CLIP's vocabulary", folder.display()),
            "CLIPMILL_REQUIRE_MODEL",
        );
    }
    let tower = TextTower { vocab: Some(files[0].into()), merges: Some(files[1].into()), ..tower() };
    let ours = Tokens::open(&tower, |file: &str| -> PathBuf { folder.join(file) }).unwrap();
    let golden = golden(&support::data("clip_tokens.json"));
    assert_eq!(golden.len(), 27);
    let mut wrong = Vec::new();
    for entry in &golden {
        let text = entry["text"].as_str().unwrap();
        let wanted = ids(entry);
        let mut found = ours.ids(text, tower.max_tokens).unwrap();
        // As the text encoder fills: behind the first end token the model sees nothing.
        found.resize(found.len().max(tower.pad_to), 0);
        if found != wanted {
            wrong.push(format!("{text:?}:\n  found  {found:?}\n  wanted {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} texts:\n{}", wrong.len(), golden.len(), wrong.join("\n"));
}

/// Every id that SentencePiece itself gives, by models of every setting; the texts as they are, and
/// cleaned as SigLIP's tokenizer cleans them. `$CLIPMILL_SPIECE` is a folder with further models and
/// texts, made by `make_spiece_tokens.py --full`.
#[test]
fn sentencepiece_tokens_are_those_of_the_library() {
    let further = std::env::var_os("CLIPMILL_SPIECE").map(PathBuf::from);
    for folder in [Some(support::data("")), further].into_iter().flatten() {
        let open = |name: &str, is_cleaned: bool| {
            let tower = TextTower {
                sentencepiece: Some(name.into()),
                lowercase: is_cleaned,
                strip_punctuation: is_cleaned,
                ..tower()
            };
            Tokens::open(&tower, |file: &str| folder.join(file)).unwrap()
        };
        let models = [
            ("spiece.model", false, open("spiece.model", false)),
            ("spiece.model", true, open("spiece.model", true)),
            ("spiece-bytes.model", false, open("spiece-bytes.model", false)),
        ];
        let golden = golden(&folder.join("spiece_tokens.json"));
        assert!(golden.len() >= 90, "{}", golden.len());
        let mut wrong = Vec::new();
        for entry in &golden {
            let is_cleaned = entry["cleaned"] == true;
            let (.., ours) = models.iter().find(|m| entry["model"] == m.0 && is_cleaned == m.1).unwrap();
            let text = entry["text"].as_str().unwrap();
            let (found, wanted) = (ours.ids(text, usize::MAX).unwrap(), ids(entry));
            if found != wanted {
                wrong.push(format!("{} {text:?}:\n  found  {found:?}\n  wanted {wanted:?}", entry["model"]));
            }
        }
        assert!(wrong.is_empty(), "{} of {} texts:\n{}", wrong.len(), golden.len(), wrong.join("\n"));
    }
}

#[test]
fn a_cut_text_keeps_its_end_token() {
    let tower = TextTower { sentencepiece: Some("spiece.model".into()), ..tower() };
    let ours = Tokens::open(&tower, support::data).unwrap();
    let whole = ours.ids("a person rides a bicycle", usize::MAX).unwrap();
    let cut = ours.ids("a person rides a bicycle", 4).unwrap();
    assert_eq!(cut, [&whole[..3], &[1]].concat());
    assert_eq!(ours.ids("", 4).unwrap(), [1]);
}

#[test]
fn files_that_are_no_such_models_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(support::data("spiece.model")).unwrap();
    for (bytes, says) in [
        (b"\xFF\xFF\xFF".to_vec(), "is no SentencePiece model"),
        (Vec::new(), "it has no pieces"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
    ] {
        fs::write(folder.path().join("x.model"), bytes).unwrap();
        let tower = TextTower { sentencepiece: Some("x.model".into()), ..tower() };
        let Err(e) = Tokens::open(&tower, |file: &str| folder.path().join(file)) else {
            panic!("no error, wanted {says}")
        };
        let told = format!("{e:#}");
        assert!(told.contains("x.model") && told.contains(says), "{told}");
    }
}
