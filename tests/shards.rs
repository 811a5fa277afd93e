//! Shards and their manifests: what is written, what is noticed, and what an older run lacks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use stages::index::{
    manifest::{Listed, Manifest},
    vectors::verify,
};
use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, VP8_WEBM, make},
    run::{Site, Table},
};

const SHARD_A_CLIP: (&str, &str) = ("index.shard_rows", "1");

/// A run of three shards, a clip each.
fn site() -> Site {
    let site = Site::new();
    for form in [MPEG4_AVI, H264_MP4, VP8_WEBM] {
        make(&site.path("clips"), &Clip::counting(form));
    }
    site.run(&[SHARD_A_CLIP]).expect(0);
    site
}

fn names(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = all.collect();
    names.sort();
    names
}

#[test]
fn a_manifest_says_what_its_files_are() {
    let site = site();
    let out = site.path("out");
    assert_eq!(
        names(&out.join("manifests")),
        ["rejects.json", "shard-00000.json", "shard-00001.json", "shard-00002.json"]
    );
    let listed = |path: PathBuf, rows: u64| {
        let bytes = fs::read(path).unwrap();
        Listed { rows, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() }
    };
    // In order of its keys, without blanks.
    let identity = serde_json::to_string(&site.record()["identity"]).unwrap();
    assert!(identity.contains("\"index.embedding\":\"float16\""), "{identity}");
    for shard in 0..3 {
        let wanted = Manifest {
            shard,
            schema_version: 1,
            clipmill: env!("CARGO_PKG_VERSION").into(),
            settings_hash: blake3::hash(identity.as_bytes()).to_hex().to_string(),
            frames: listed(out.join(format!("frames/shard-{shard:05}.parquet")), 4),
            clips: listed(out.join(format!("clips/shard-{shard:05}.parquet")), 1),
        };
        assert_eq!(Manifest::read(&out, shard).unwrap(), Some(wanted));
    }
    assert_eq!(verify(&out).unwrap(), [""; 0]);
}

#[test]
fn a_file_that_changed_is_named() {
    let site = site();
    let out = site.path("out");
    let check = |name: &str, change: &dyn Fn(&mut Vec<u8>), wanted: &str| {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let told = verify(&out).unwrap().concat();
        assert!(told.contains(path.to_str().unwrap()) && told.contains(wanted), "{told}");
        fs::write(&path, whole).unwrap();
        assert_eq!(verify(&out).unwrap(), [""; 0]);
    };
    check("frames/shard-00001.parquet", &|bytes| bytes[100] ^= 1, "has blake3 ");
    check("clips/shard-00002.parquet", &|bytes| *bytes.last_mut().unwrap() ^= 128, "has blake3 ");
    check("clips/shard-00000.parquet", &|bytes| bytes.truncate(10), "has 10 bytes, its manifest says ");
    check("manifests/shard-00000.json", &|bytes| bytes.truncate(10), "is damaged");
    fs::remove_file(out.join("frames/shard-00002.parquet")).unwrap();
    let told = verify(&out).unwrap().concat();
    assert!(told.contains("cannot read") && told.contains("frames/shard-00002.parquet"), "{told}");
}

/// Whatever a kill left of a shard that is not in the ledger goes, its manifest as well.
#[test]
fn what_was_not_finished_is_swept() {
    let site = site();
    let out = site.path("out");
    let whole = site.files();
    let ledger = fs::read_to_string(out.join("ledger")).unwrap();
    let before_last = ledger.trim_end().rfind('\n').unwrap() + 1;
    // As if it was killed just before the last line, within it, or earlier and earlier.
    let last = ["manifests/shard-00002.json", "clips/shard-00002.parquet", "frames/shard-00002.parquet"];
    for n_lost in 0..=last.len() {
        fs::write(out.join("ledger"), &ledger[..before_last + n_lost]).unwrap();
        for (n, name) in last.iter().enumerate() {
            let (path, partial) = (out.join(name), out.join(format!("{name}.partial")));
            // One that no later shard writes over.
            fs::copy(&path, out.join(name.replace("00002", "00009"))).unwrap();
            fs::copy(&path, out.join(name.replace("00002", "00009") + ".partial")).unwrap();
            if n < n_lost {
                fs::rename(path, partial).unwrap();
            }
        }
        site.run(&[SHARD_A_CLIP]).expect(0).says(&["3 of 3 clips indexed (2 unchanged"]);
        assert_eq!(site.files().keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        assert_eq!(verify(&out).unwrap(), [""; 0]);
        assert_eq!((site.table("clips").len(), site.table("frames").len()), (3, 12));
    }
}

/// Runs of versions that knew neither manifests nor `index.embedding` go on.
#[test]
fn an_older_run_goes_on() {
    let site = site();
    let out = site.path("out");
    fs::remove_dir_all(out.join("manifests")).unwrap();
    let mut record = site.record();
    for part in ["identity", "settings"] {
        record[part].as_object_mut().unwrap().remove("index.embedding").unwrap();
    }
    fs::write(out.join("run.json"), record.to_string()).unwrap();
    assert_eq!(verify(&out).unwrap(), [""; 0]);
    assert_eq!(Manifest::read(&out, 0).unwrap(), None);

    let other = site.run(&[SHARD_A_CLIP, ("index.embedding", "\"float32\"")]).expect(2);
    let _ = other.says(&["index.embedding: there \"float16\", here \"float32\""]);
    make(&site.path("clips/more"), &Clip::counting(MPEG4_AVI));
    fs::rename(site.path("clips/more/mpeg4.avi"), site.path("clips/more.avi")).unwrap();
    site.run(&[SHARD_A_CLIP]).expect(0).says(&["4 of 4 clips indexed (3 unchanged"]);
    assert_eq!(verify(&out).unwrap(), [""; 0]);
    assert_eq!(Manifest::read(&out, 3).unwrap().unwrap().clips.rows, 1);
    assert_eq!(site.record()["identity"]["index.embedding"], Value::from("float16"));
}

#[test]
fn vectors_of_both_widths_are_the_same() {
    let site = site();
    let out = format!("{:?}", site.path("wide"));
    site.run(&[("output.dir", &out), ("index.embedding", "\"float32\"")]).expect(0);
    for table in ["frames", "clips"] {
        let half = site.table(table).sorted().vectors("embedding");
        let single = Table::read(&site.path("wide"), table).sorted().vectors("embedding");
        let rounded: Vec<Vec<f32>> =
            single.iter().map(|v| v.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect()).collect();
        assert_eq!(half, rounded, "{table}");
        assert_ne!(single, rounded, "{table}: float32 holds more than float16");
    }
}
