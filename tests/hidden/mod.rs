//! What must not be seen, and looking for it everywhere.

#![allow(dead_code)] // each test crate uses a part

use crate::world::World;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every private value holds this text; every private number is this one.
pub(crate) const MARK: &str = "MARCAPRIVADA";
pub(crate) const NUMBER: i64 = 987_654_321;
pub(crate) const KEY: &str = "una clave bastante larga";

fn files(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    // Where nothing was begun there is no folder.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path);
        }
    }
}

pub(crate) fn lake_files(w: &World) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    files(&w.lake(), &mut found);
    found
}

pub(crate) fn shows(bytes: &[u8]) -> bool {
    let number = NUMBER.to_string();
    let has = |mark: &[u8]| bytes.windows(mark.len()).any(|part| part == mark);
    has(MARK.as_bytes()) || has(number.as_bytes()) || has(KEY.as_bytes())
}

/// Neither as it lies on disk (names, statistics, footers) nor in any decoded cell.
pub(crate) fn assert_hidden(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    assert!(!shows(&bytes), "{}", path.display());
    if path.extension().is_none_or(|extension| extension != "parquet") {
        return;
    }
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    for batch in reader {
        let batch = batch.unwrap();
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            let at = |shown: bool| assert!(!shown, "column {} of {}", field.name(), path.display());
            if let Some(texts) = array.as_string_opt::<i32>() {
                texts.iter().flatten().for_each(|text| at(shows(text.as_bytes())));
            } else if let Some(texts) = array.as_binary_opt::<i32>() {
                texts.iter().flatten().for_each(|text| at(shows(text)));
            } else if let Some(numbers) = array.as_primitive_opt::<Int64Type>() {
                at(numbers.iter().flatten().any(|number| number == NUMBER));
            } else {
                assert!(array.null_count() <= array.len());
            }
        }
    }
}

pub(crate) fn output(w: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let output = w.command(args).envs(env.iter().copied()).output().unwrap();
    let all = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&all).into_owned())
}

/// Of no file of the lake.
pub(crate) fn assert_lake_hidden(w: &World) {
    lake_files(w).iter().for_each(|path| assert_hidden(path));
}

/// The data files there are, whether a list names them or not.
pub(crate) fn data_files(w: &World) -> BTreeSet<PathBuf> {
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".parquet") && !name.starts_with('_') && path.starts_with(w.lake().join("tables"))
    };
    lake_files(w).into_iter().filter(is_data).collect()
}

/// The command ends with this code, and says nothing that is private.
pub(crate) fn ends(w: &World, args: &[&str], env: &[(&str, &str)], code: i32) -> String {
    let (ended, said) = output(w, args, env);
    assert_eq!(ended, code, "{args:?} {env:?}\n{said}");
    assert!(!shows(said.as_bytes()), "{said}");
    said
}
