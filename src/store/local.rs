//! A lake in a directory: objects are files, generations are modification times that never repeat.
//!
//! Owns: durable, atomic writes on a local Linux file system, the lock that makes compare-and-swap true across
//! processes. Does not own: network file systems (locks and hard links are not promised there).
//! Invariants: a file is visible only whole and after its bytes are durable; `Ok` means that its name is durable too;
//! two contents of one path never have the same generation.
//!
//! **Generation** is the file's modification time in nanoseconds, set by us. A replacement happens under an exclusive
//! lock and is stamped later than what it replaces, whatever the clock says. A deletion, under the same lock, first
//! raises the lock file's own time to that of the deleted file; a creation is stamped later than the lock file, which
//! it compares under the shared lock while it links the file into place. So times of one path only grow.
//!
//! Unfinished files live in `.tmp-huella/` beside the lock; what a crash leaves there is swept a day later.

use super::local_file::{Temp, checksum, generation, io_error, is_absent, meta, set_time, stat, sync_dir, time_of};
use super::local_rights::{FILE_MODE, close_to_others, is_lakes_alone, make_private_dir};
use super::{Generation, Meta, Object, RESERVED, Store, StoreError, Upload, check_path, check_prefix};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Unfinished files and the lock.
const TEMP_FOLDER: &str = ".tmp-huella";
/// Never deleted: a lock on a deleted file excludes nobody.
const LOCK_NAME: &str = "lock";
/// A holder needs milliseconds (one rename); longer means that it is stopped, and waiting on would hide that.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two tries for the lock: well below a disk's flush.
const LOCK_POLL: Duration = Duration::from_millis(1);
/// An unfinished file this old belongs to nobody: writing one takes seconds.
const TEMP_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A directory as a store. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalStore(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    root: PathBuf,
    temp: PathBuf,
    /// Tells this process's unfinished files from another's on the same volume (container pids repeat).
    tag: u64,
    temp_count: AtomicU64,
    /// Directories whose own names are known to be durable.
    durable: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// Opens the directory; it need not exist, the first write makes it. A relative path is taken from the working directory.
    ///
    /// # Errors
    /// `Refused` if the path is something else than a directory, or may not be looked at.
    pub fn open(root: PathBuf) -> Result<Self, StoreError> {
        let shown = root.display().to_string();
        let root = std::path::absolute(&root).map_err(|e| io_error(&shown, "finding the directory", &e))?;
        match fs::metadata(&root) {
            Ok(found) if !found.is_dir() => return Err(StoreError::refused(&shown, "not a directory")),
            // A process killed between rename and flush left something visible that may not be durable: make it so
            // before anybody believes it.
            Ok(_) => sync_dir(&root).map_err(|e| io_error(&shown, "flushing the directory", &e))?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io_error(&shown, "opening the directory", &e)),
        }
        let temp = root.join(TEMP_FOLDER);
        refuse_strangers(&root)?;
        sweep(&temp);
        let tag = RandomState::new().hash_one(std::process::id());
        Ok(Self(Arc::new(Directory { root, temp, tag, temp_count: AtomicU64::new(0), durable: Mutex::default() })))
    }

    /// Runs file work on a thread that may block. Once begun it runs to its end, even if the caller goes away.
    async fn blocking<T, F>(&self, path: &str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Directory, &str) -> Result<T, StoreError> + Send + 'static,
    {
        let (directory, path) = (self.0.clone(), path.to_owned());
        let shown = path.clone();
        tokio::task::spawn_blocking(move || work(&directory, &path))
            .await
            .map_err(|e| StoreError::trouble(&shown, format!("the file operation was not finished: {e}")))?
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError> {
        check_path(path)?;
        self.blocking(path, move |directory, path| directory.put_new(path, &body)).await
    }

    async fn put_new_in_parts(&self, path: &str) -> Result<Option<Box<dyn Upload>>, StoreError> {
        check_path(path)?;
        let temp = self.blocking(path, |directory, path| directory.write_temp(path, &[])).await?;
        Ok(Some(Box::new(LocalUpload { store: self.clone(), path: path.to_owned(), temp: Some(temp) })))
    }

    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError> {
        check_path(path)?;
        self.blocking(path, move |directory, path| directory.replace_if(path, &body, expected)).await
    }

    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError> {
        check_path(path)?;
        self.blocking(path, |directory, path| {
            let Some((mut file, found)) = directory.open_object(path)? else { return Ok(None) };
            let mut body = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
            file.read_to_end(&mut body).map_err(|e| io_error(path, "reading", &e))?;
            Ok(Some(Object { body: body.into(), generation: generation(&found) }))
        })
        .await
    }

    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        check_path(path)?;
        self.blocking(path, |directory, path| {
            let Some((mut file, found)) = directory.open_object(path)? else { return Ok(None) };
            let crc = checksum(&mut file).map_err(|e| io_error(path, "reading", &e))?;
            Ok(Some(Meta { crc32c: Some(crc), ..meta(path.to_owned(), &found) }))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
        check_prefix(prefix)?;
        self.blocking(prefix, |directory, prefix| directory.list(prefix)).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_path(path)?;
        self.blocking(path, |directory, path| directory.delete(path)).await
    }

    fn uri(&self, path: &str) -> String {
        self.0.root.join(path).display().to_string()
    }

    fn min_replace_interval(&self) -> Duration {
        Duration::ZERO
    }
}

/// A file that is written in parts.
struct LocalUpload {
    store: LocalStore,
    path: String,
    /// `None` once a part failed.
    temp: Option<Temp>,
}

#[async_trait]
impl Upload for LocalUpload {
    // The store computes no checksum of its own: the bytes go to the file as they came.
    async fn write(&mut self, part: Bytes) -> Result<(), StoreError> {
        let mut temp = self.temp.take().ok_or_else(|| StoreError::trouble(&self.path, "an earlier part was not written"))?;
        let written = self.store.blocking(&self.path, move |_, path| match temp.file.write_all(&part) {
            Ok(()) => Ok(temp),
            Err(e) => Err(io_error(path, "writing", &e)),
        });
        self.temp = Some(written.await?);
        Ok(())
    }

    async fn finish(self: Box<Self>, _crc32c: u32) -> Result<Generation, StoreError> {
        let temp = self.temp.ok_or_else(|| StoreError::trouble(&self.path, "an earlier part was not written"))?;
        self.store.blocking(&self.path, |directory, path| directory.publish(path, temp)).await
    }
}

impl std::fmt::Debug for LocalUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalUpload({})", self.path)
    }
}

impl Directory {
    fn put_new(&self, path: &str, body: &[u8]) -> Result<Generation, StoreError> {
        self.publish(path, self.write_temp(path, body)?)
    }

    /// Gives a finished file its name.
    fn publish(&self, path: &str, mut temp: Temp) -> Result<Generation, StoreError> {
        let target = self.root.join(path);
        let parent = target.parent().expect("an object lies below the root");
        temp.stamp(self.floor(path)?).and_then(|()| temp.file.sync_all()).map_err(|e| io_error(path, "writing", &e))?;
        // Twice: somebody may remove the folder by hand between its making and the link.
        for last in [false, true] {
            self.make_durable_dir(parent).map_err(|e| io_error(path, "making the folder", &e))?;
            let lock = self.lock(path, Lock::Shared)?;
            let floor = time_of(&lock.metadata().map_err(|e| io_error(path, "reading the lock's time", &e))?);
            if floor >= temp.generation {
                temp.stamp(floor).and_then(|()| temp.file.sync_all()).map_err(|e| io_error(path, "writing", &e))?;
            }
            match fs::hard_link(&temp.path, &target) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(StoreError::precondition(path)),
                Err(e) if e.kind() == ErrorKind::NotFound && !last => self.forget_durable(),
                Err(e) => return Err(io_error(path, "linking the finished file into place", &e)),
            }
        }
        self.sync_name(path, parent)?;
        Ok(Generation(temp.generation))
    }

    fn replace_if(&self, path: &str, body: &[u8], expected: Generation) -> Result<Generation, StoreError> {
        let target = self.root.join(path);
        let parent = target.parent().expect("an object lies below the root");
        let check = || match stat(&target).map_err(|e| io_error(path, "reading", &e))? {
            Some(found) if generation(&found) == expected => Ok(()),
            _ => Err(StoreError::precondition(path)),
        };
        check()?; // decides nothing, but spares the writing, and an absent lake's folders
        let mut temp = self.write_temp(path, body)?;
        // The bytes go to the disk before the lock is taken: it is held for one small flush and a rename.
        temp.file.sync_all().map_err(|e| io_error(path, "writing", &e))?;
        let lock = self.lock(path, Lock::Exclusive)?;
        check()?;
        temp.stamp(expected.0).and_then(|()| temp.file.sync_all()).map_err(|e| io_error(path, "writing", &e))?;
        fs::rename(&temp.path, &target).map_err(|e| io_error(path, "renaming the finished file into place", &e))?;
        drop(lock);
        self.sync_name(path, parent)?;
        Ok(Generation(temp.generation))
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        let target = self.root.join(path);
        // Looked at before the lock, so that deleting nothing makes no folders.
        if stat(&target).map_err(|e| io_error(path, "reading", &e))?.is_none() {
            return Ok(());
        }
        let lock = self.lock(path, Lock::Exclusive)?;
        let Some(found) = stat(&target).map_err(|e| io_error(path, "reading", &e))? else { return Ok(()) };
        let raise = || {
            let deleted = time_of(&found);
            if time_of(&lock.metadata()?) < deleted {
                set_time(&lock, deleted)?;
                lock.sync_all()?;
            }
            fs::remove_file(&target)
        };
        raise().map_err(|e| io_error(path, "deleting", &e))?;
        drop(lock);
        self.sync_name(path, target.parent().expect("an object lies below the root"))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
        let base = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = Vec::new();
        let mut folders = vec![base.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Ok(entries) => entries,
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(io_error(&folder, "listing", &e)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| io_error(&folder, "listing", &e))?;
                // A name that is not UTF-8 was not written here.
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.starts_with(RESERVED) {
                    continue;
                }
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // A link may lead anywhere: what it names is no object of the lake.
                match fs::symlink_metadata(entry.path()) {
                    Ok(about) if about.is_dir() && format!("{path}/").starts_with(prefix) => folders.push(path),
                    Ok(about) if about.is_file() && path.starts_with(prefix) => found.push(meta(path, &about)),
                    Ok(_) => {}
                    Err(e) if is_absent(&e) => {} // deleted meanwhile
                    Err(e) => return Err(io_error(&path, "listing", &e)),
                }
            }
        }
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The object's file and what is known of it, both of the same version: a replacement is another file.
    fn open_object(&self, path: &str) -> Result<Option<(File, Metadata)>, StoreError> {
        let opened = File::open(self.root.join(path)).and_then(|file| file.metadata().map(|about| (file, about)));
        match opened {
            Ok((_, about)) if about.is_dir() => Ok(None),
            Ok(found) => Ok(Some(found)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(io_error(path, "opening", &e)),
        }
    }

    /// Does something in the folder of unfinished files, which is made (again) if it is not there: somebody may remove it by hand.
    fn in_temp<T>(&self, path: &str, doing: &str, work: impl Fn() -> io::Result<T>) -> Result<T, StoreError> {
        for last in [false, true] {
            self.make_durable_dir(&self.temp).map_err(|e| io_error(path, "making the folder of unfinished files", &e))?;
            match work() {
                Ok(done) => return Ok(done),
                Err(e) if e.kind() == ErrorKind::NotFound && !last => self.forget_durable(),
                Err(e) => return Err(io_error(path, doing, &e)),
            }
        }
        unreachable!("the last round returns")
    }

    /// Writes the bytes to an unfinished file, not flushed.
    fn write_temp(&self, path: &str, body: &[u8]) -> Result<Temp, StoreError> {
        let count = self.temp_count.fetch_add(1, Ordering::Relaxed);
        let name = self.temp.join(format!("{:016x}-{count}", self.tag));
        let file = self.in_temp(path, "making a file", || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&name))?;
        let mut temp = Temp { file, path: name, generation: 0 };
        temp.file.write_all(body).map_err(|e| io_error(path, "writing", &e))?;
        Ok(temp)
    }

    fn lock_file(&self, path: &str) -> Result<File, StoreError> {
        let name = self.temp.join(LOCK_NAME);
        self.in_temp(path, "opening the lock", || OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&name))
    }

    /// Whether the lock is still the one that others take: a lock on a file that was removed excludes nobody.
    fn is_the_lock(&self, lock: &File) -> io::Result<bool> {
        let ours = lock.metadata()?;
        Ok(stat(&self.temp.join(LOCK_NAME))?.is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
    }

    /// The latest generation of any deleted object, or later.
    fn floor(&self, path: &str) -> Result<i64, StoreError> {
        self.lock_file(path)?.metadata().map(|about| time_of(&about)).map_err(|e| io_error(path, "reading the lock's time", &e))
    }

    /// Takes the lake's lock (flock: it goes with its holder, however that ends).
    fn lock(&self, path: &str, kind: Lock) -> Result<File, StoreError> {
        let mut file = self.lock_file(path)?;
        let begun = Instant::now();
        loop {
            let taken = match kind {
                Lock::Shared => file.try_lock_shared(),
                Lock::Exclusive => file.try_lock(),
            };
            match taken {
                Ok(()) if self.is_the_lock(&file).map_err(|e| io_error(path, "looking at the lock", &e))? => return Ok(file),
                Ok(()) if begun.elapsed() < LOCK_WAIT_MAX => file = self.lock_file(path)?,
                Ok(()) => return Err(StoreError::trouble(path, format!("{} is removed again and again", self.temp.display()))),
                Err(TryLockError::Error(e)) => return Err(io_error(path, "locking", &e)),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT_MAX => std::thread::sleep(LOCK_POLL),
                Err(TryLockError::WouldBlock) => {
                    let held = self.temp.join(LOCK_NAME);
                    return Err(StoreError::trouble(path, format!("another process has held {} for {LOCK_WAIT_MAX:?}", held.display())));
                }
            }
        }
    }

    /// Makes a directory and those above it, each one's name durable before anything in it is believed to be.
    fn make_durable_dir(&self, dir: &Path) -> io::Result<()> {
        if self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(dir) {
            return Ok(());
        }
        let parent = dir.parent();
        let inside = dir.starts_with(&self.root);
        // From the root down: each is closed to others before anything is put below it.
        if let Some(parent) = parent.filter(|_| inside && dir != self.root) {
            self.make_durable_dir(parent)?;
        }
        // Above the root the user's own rule (umask) holds.
        match if inside { make_private_dir(dir) } else { fs::create_dir(dir) } {
            Ok(()) => parent.map_or(Ok(()), sync_dir)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let Some(parent) = parent else { return Err(e) };
                self.forget_durable(); // somebody removed a folder by hand
                self.make_durable_dir(parent)?;
                return self.make_durable_dir(dir);
            }
            // Somebody else may have made it a moment ago and not flushed yet. Above the root it is not our affair.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {
                if dir == self.root && !is_lakes_alone(dir)? {
                    tracing::debug!(dir = %dir.display(), "the lake's directory holds other things too, and keeps its rights");
                } else if inside {
                    close_to_others(dir)?;
                }
                if let Some(parent) = parent.filter(|_| inside && dir != self.root) {
                    sync_dir(parent)?;
                }
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(ErrorKind::NotADirectory.into()),
            Err(e) => return Err(e),
        }
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_owned());
        Ok(())
    }

    fn forget_durable(&self) {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes a name that was linked, renamed or removed durable. If that fails the disk does, and what is visible can
    /// no longer be believed by reading it back: a person must look.
    fn sync_name(&self, path: &str, parent: &Path) -> Result<(), StoreError> {
        sync_dir(parent).map_err(|e| {
            StoreError::refused(
                path,
                format!("flushing the folder failed ({e}): what is visible may not survive a power cut; check the disk, then start again"),
            )
        })
    }
}

#[derive(Clone, Copy)]
enum Lock {
    Shared,
    Exclusive,
}

/// Refuses links in the place of our folders and of the watermark, which would lead writes and deletions elsewhere, and folders that
/// belong to somebody who is neither this user, nor root, nor the owner of the lake.
fn refuse_strangers(root: &Path) -> Result<(), StoreError> {
    let owner = match fs::metadata(root) {
        Ok(found) => found.uid(),
        Err(e) if is_absent(&e) => return Ok(()),
        Err(e) => return Err(io_error("", "looking at the directory", &e)),
    };
    // SAFETY: geteuid has no preconditions and cannot fail.
    let trusted = [owner, 0, unsafe { libc::geteuid() }];
    for name in [TEMP_FOLDER, "tables", "commits", "state", "published", "watermark.json"] {
        let at = root.join(name);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_symlink() => {
                return Err(StoreError::refused(name, format!("{} is a symbolic link; replace it by what it points to", at.display())));
            }
            Ok(found) if !trusted.contains(&found.uid()) => {
                let fix = format!("chown -R {owner} {}", root.display());
                return Err(StoreError::refused(
                    name,
                    format!("{} belongs to user {}; if that is meant: {fix}", at.display(), found.uid()),
                ));
            }
            Ok(_) => {}
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(io_error(name, "looking at it", &e)),
        }
    }
    Ok(())
}

/// Removes unfinished files of processes long gone. Best effort: a lake that may only be read has none of ours.
fn sweep(temp: &Path) {
    let Ok(entries) = fs::read_dir(temp) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCK_NAME) {
        let age = entry.metadata().and_then(|about| about.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > TEMP_AGE_MAX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_of_unfinished_files_that_was_removed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path().join("lake")).unwrap();
        let first = store.put_new("a", "1".into()).await.unwrap();
        for _ in 0..2 {
            fs::remove_dir_all(folder.path().join("lake/.tmp-huella")).unwrap();
            store.put_new(&format!("b/{}", RandomState::new().hash_one(0)), "2".into()).await.unwrap();
        }
        fs::remove_dir_all(folder.path().join("lake/.tmp-huella")).unwrap();
        let second = store.replace_if("a", "3".into(), first).await.unwrap();
        fs::remove_dir_all(folder.path().join("lake/.tmp-huella")).unwrap();
        store.delete("a").await.unwrap();
        assert!(second != first && store.get("a").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_lock_that_was_removed_excludes_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path().join("lake")).unwrap();
        store.put_new("a", "1".into()).await.unwrap();
        let held = store.0.lock("a", Lock::Exclusive).unwrap();
        fs::remove_dir_all(folder.path().join("lake/.tmp-huella")).unwrap();
        assert!(!store.0.is_the_lock(&held).unwrap());
        let taken = store.0.lock("a", Lock::Exclusive).unwrap();
        assert!(store.0.is_the_lock(&taken).unwrap());
    }

    #[test]
    fn links_in_the_place_of_our_folders_are_refused() {
        for name in [TEMP_FOLDER, "tables", "commits", "state", "published", "watermark.json"] {
            let folder = tempfile::tempdir().unwrap();
            let (root, elsewhere) = (folder.path().join("lake"), folder.path().join("elsewhere"));
            fs::create_dir_all(&root).unwrap();
            fs::create_dir_all(&elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, root.join(name)).unwrap();
            let error = LocalStore::open(root).unwrap_err();
            assert!(matches!(&error, StoreError::Refused { .. }) && error.to_string().contains("symbolic link"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_link_names_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path().join("lake")).unwrap();
        store.put_new("tables/a", "1".into()).await.unwrap();
        fs::create_dir_all(folder.path().join("elsewhere")).unwrap();
        fs::write(folder.path().join("elsewhere/x"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("lake/tables/b")).unwrap();
        let found: Vec<_> = store.list("tables/").await.unwrap().into_iter().map(|meta| meta.path).collect();
        assert_eq!(found, ["tables/a"]);
    }
}
