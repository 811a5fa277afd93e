//! CLIP's tokens: ours against those of its own tokenizer.

use std::{fs, path::PathBuf};

use stages::{
    encode::text::{token_ids, tokenizer},
    model::{Home, Pool, TextTower},
};

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
    let tower = TextTower {
        file: String::new(),
        tokenizer: None,
        vocab: Some(files[0].into()),
        merges: Some(files[1].into()),
        input_ids: String::new(),
        attention_mask: None,
        token_type_ids: None,
        output: String::new(),
        pool: Pool::None,
        max_tokens: 77,
        pad_to: 77,
    };
    let ours = tokenizer(&tower, |file: &str| -> PathBuf { folder.join(file) }).unwrap();
    let golden: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(support::data("clip_tokens.json")).unwrap()).unwrap();
    assert_eq!(golden.len(), 27);
    let mut wrong = Vec::new();
    for entry in &golden {
        let text = entry["text"].as_str().unwrap();
        let wanted: Vec<i64> =
            entry["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        let mut found = token_ids(&ours, text, tower.max_tokens).unwrap();
        // As the text encoder fills: behind the first end token the model sees nothing.
        found.resize(found.len().max(tower.pad_to), 0);
        if found != wanted {
            wrong.push(format!("{text:?}:\n  found  {found:?}\n  wanted {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} texts:\n{}", wrong.len(), golden.len(), wrong.join("\n"));
}
