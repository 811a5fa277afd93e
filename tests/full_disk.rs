//! A disk that fills up: the run ends with the file's name, what is committed stays, and the next run
//! completes it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use support::{
    clips::{Clip, H264_MP4, MPEG4_AVI, Show, make_at},
    run::{Outcome, Site, Table, binary, outcome},
};

const N_SMALL: usize = 8;

/// Runs the program where no file can grow past so many blocks of 512 bytes. The write that passes
/// the limit fails (EFBIG), as one on a full disk does.
fn run_limited(config: &Path, blocks: usize) -> Outcome {
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(binary()).arg("run").arg(config);
    outcome(command)
}

fn partials(folder: &Path) -> Vec<String> {
    let folders = [folder.to_owned(), folder.join("frames"), folder.join("clips")];
    let all = folders.iter().flat_map(|f| fs::read_dir(f).unwrap());
    let names = all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|n| n.ends_with(".partial")).collect()
}

#[test]
fn a_full_disk_ends_the_run_and_the_next_one_completes_it() {
    let site = Site::new();
    for n in 0..N_SMALL {
        make_at(&site.path(&format!("clips/small-{n}.mp4")), &Clip::counting(H264_MP4));
    }
    // Enough rows that its shard outgrows the limit, and last in the list.
    let long = Clip {
        n_frames: 3000,
        show: Show::Pattern("ball"),
        width: 32,
        height: 32,
        ..Clip::counting(MPEG4_AVI)
    };
    make_at(&site.path("clips/z-long.avi"), &long);
    // One worker a stage keeps the order of the list.
    let settings = [
        ("sample.all", "true"),
        ("index.shard_rows", "100"),
        ("load.workers", "1"),
        ("decode.workers", "1"),
        ("encode.workers", "1"),
    ];
    let config = site.config(&settings);
    let failed = run_limited(&config, 24).expect(1);
    let told = failed.stderr.lines().find(|l| l.starts_with("error: ")).expect("an error is told");
    assert!(told.contains("shard-00004.parquet.partial") && told.contains("File too large"), "{told}");
    assert!(failed.stderr.contains("run it again to go on"), "{}", failed.stderr);

    let before = Table::read(&site.path("out"), "clips");
    assert_eq!((before.len(), site.table("frames").len()), (N_SMALL, 50 * N_SMALL));
    assert_eq!(site.record()["status"], "failed");

    site.run(&settings).expect(0).says(&["9 of 9 clips indexed (8 unchanged from an earlier run)"]);
    let (clips, frames) = (site.table("clips"), site.table("frames"));
    assert_eq!(clips.len(), N_SMALL + 1);
    assert_eq!(clips.names().into_iter().collect::<BTreeSet<_>>().len(), N_SMALL + 1);
    assert_eq!(frames.len(), 50 * N_SMALL + 3000);
    assert_eq!(clips.only(|row| row < before.len()), before);
    assert_eq!(partials(&site.path("out")), Vec::<String>::new());
    assert_eq!(site.record()["status"], "finished");
}

#[test]
fn a_disk_full_from_the_start_loses_nothing() {
    let site = Site::new();
    make_at(&site.path("clips/small.mp4"), &Clip::counting(H264_MP4));
    let config = site.config(&[]);
    let failed = run_limited(&config, 0);
    assert!(matches!(failed.code, Some(1 | 2)), "{failed:?}");
    assert!(
        failed.stderr.contains(site.path("out").to_str().unwrap()),
        "it names the file: {}",
        failed.stderr
    );
    site.run(&[]).expect(0).says(&["1 of 1 clips indexed"]);
    assert_eq!(partials(&site.path("out")), Vec::<String>::new());
}
