//! The house: data flows one way, and so do imports. A room may use only rooms that stand before it in `ROOMS`.

#![allow(clippy::unwrap_used)] // a broken test may panic

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From the ground up. The two vocabularies at the bottom know nobody; `cli` and `main` may know all.
const ROOMS: &[&str] = &[
    "error",
    "lsn",
    "table_name",
    "failpoint",
    "stdout",
    "wait",
    "config",
    "pgoutput",
    "postgres",
    "lake",
    "store",
    "observe",
    "schema",
    "shapes",
    "batch",
    "commit",
    "snapshot",
    "replicate",
    "check",
    "files",
    "status",
    "verify",
    "publish",
    "compact",
    "forget",
    "dataform",
    "teardown",
    "daily",
    "cli",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.to_string_lossy().ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Rooms named after `crate::`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::").skip(1).map(name).filter(|n| !n.is_empty()).collect()
}

#[test]
fn imports_go_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "the sources are found");
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&root).unwrap();
        let room = relative.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        if room == "main" || room == "lib" {
            continue;
        }
        let place = ROOMS.iter().position(|r| *r == room);
        let Some(place) = place else {
            wrong.push(format!("{room} has no place in the house"));
            continue;
        };
        for other in imports(&code(&std::fs::read_to_string(file).unwrap())) {
            let below = ROOMS.iter().position(|r| *r == other).is_some_and(|p| p <= place);
            if !below {
                wrong.push(format!("{}: crate::{other}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "upward imports:\n{}", wrong.join("\n"));
}

#[test]
fn an_upward_import_would_be_seen() {
    let text =
        "use crate::error::Error;\n// crate::cli\nfn f() { crate::replicate::run(); }\n#[cfg(test)]\nmod tests {\n use crate::verify;\n}";
    assert_eq!(imports(&code(text)).into_iter().collect::<Vec<_>>(), ["error", "replicate"]);
}

#[test]
fn nothing_unfinished_stands_in_the_sources() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for mark in [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("TO", "DO"), concat!("FIX", "ME")]
        {
            assert!(!text.contains(mark), "{}: {mark}", file.display());
        }
    }
}
