//! A lake in a directory is its owner's alone, whatever the umask. One test: the umask is the whole process's.

#![allow(clippy::unwrap_used)] // a broken test may panic

use bytes::Bytes;
use huella::store;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn assert_private(path: &Path) {
    let about = fs::metadata(path).unwrap();
    assert_eq!(mode(path), if about.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    if about.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| assert_private(&entry.unwrap().path()));
    }
}

async fn write(root: &Path) {
    let store = store::open(root.to_str().unwrap()).await.unwrap();
    let first = store.put_new("watermark.json", Bytes::from_static(b"{}")).await.unwrap();
    store.replace_if("watermark.json", Bytes::from_static(b"{ }"), first).await.unwrap();
    store.put_new("tables/public.a/v1/dt=2026-11-24/x.parquet", Bytes::from_static(b"x")).await.unwrap();
    let mut upload = store.put_new_in_parts("commits/1.json").await.unwrap().unwrap();
    upload.write(Bytes::from_static(b"y")).await.unwrap();
    upload.finish(crc32c::crc32c(b"y")).await.unwrap();
}

#[tokio::test]
async fn a_local_lake_is_its_owners_alone_whatever_the_umask() {
    // SAFETY: no other thread makes files here.
    unsafe { libc::umask(0) };
    let home = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };

    let new = home.path().join("new/lake");
    write(&new).await;
    assert_private(&new);

    let empty = home.path().join("empty");
    open(&empty);
    write(&empty).await;
    assert_private(&empty);

    // A lake of before: its folders are closed, so that its old files are out of reach.
    let old = home.path().join("old");
    for folder in ["", "tables", "tables/public.a", "tables/public.a/v1", "commits", ".tmp-huella"] {
        open(&old.join(folder));
    }
    fs::write(old.join("tables/public.a/v1/old.parquet"), b"z").unwrap();
    write(&old).await;
    for folder in ["", "tables", "tables/public.a", "tables/public.a/v1", "commits", ".tmp-huella"] {
        assert_eq!(mode(&old.join(folder)), 0o700, "{folder}");
    }

    // A directory with other things in it is not ours to close; what is ours in it is closed.
    let shared = home.path().join("shared");
    open(&shared);
    fs::write(shared.join("notes.txt"), b"n").unwrap();
    write(&shared).await;
    assert_eq!(mode(&shared), 0o755);
    for entry in ["tables", "commits", ".tmp-huella", "watermark.json"] {
        assert_private(&shared.join(entry));
    }
}
