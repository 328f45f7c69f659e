//! Tries what the lake must be able to do, on one probe object: create only, replace conditionally, read, list, delete.
//!
//! Owns: the probe. Does not own: the store, the watermark (whether the lake is ours).
//! Invariants: touches no object but its own, whose name no other run has; takes it away again whatever failed.

use super::Finding;
use crate::error::Error;
use crate::store::{Generation, MEND_CREDENTIALS, Store, StoreError};
use bytes::Bytes;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: &[u8] = b"huella check: this object may be deleted\n";
const SECOND: &[u8] = b"huella check: this object may be deleted (replaced)\n";

/// Probes the lake; one finding that says that all is well, or one for each failure.
pub async fn lake(store: &dyn Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    probe(store, &mut findings).await;
    findings
}

/// As [`lake`], for at most `limit`: what was found until then stands.
pub(super) async fn lake_within(store: &dyn Store, limit: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let late = tokio::time::timeout(limit, probe(store, &mut findings)).await.is_err();
    if late && findings.is_empty() {
        findings.push(silent(&store.uri(""), limit));
    }
    findings
}

/// A lake that does not answer.
pub(super) fn silent(uri: &str, limit: Duration) -> Finding {
    let text = format!("no usable answer within {} (a small object under state/ may be left behind)", humantime::format_duration(limit));
    let mend = match uri.starts_with("gs://") {
        true => format!("check the bucket's name and this machine's network; if it has no Google credentials: {MEND_CREDENTIALS}"),
        false => "check the disk or the network file system".to_owned(),
    };
    Finding::problem("lake-silent", format!("lake {uri}"), text).mend(mend)
}

/// A lake that cannot be opened at all.
pub(super) fn unopened(error: &Error) -> Finding {
    let text = error.full();
    match text.contains("credentials") {
        true => Finding::problem("lake-credentials", "lake", text).mend(MEND_CREDENTIALS),
        false => Finding::problem("lake-unreadable", "lake", text).mend("correct lake.url, or the rights of this account"),
    }
}

async fn probe(store: &dyn Store, findings: &mut Vec<Finding>) {
    let path = format!("state/probe-{:016x}", RandomState::new().build_hasher().finish());
    let subject = format!("lake {}", store.uri(""));
    let mut probe = Probe { store, path: &path, subject: &subject, findings };
    if let Some(generation) = probe.create().await {
        probe.create_again().await;
        probe.read(FIRST).await;
        probe.replace(generation).await;
        probe.list().await;
        probe.delete().await;
    }
    if probe.findings.is_empty() {
        let text = "objects can be created only once, replaced conditionally, read, listed and deleted";
        probe.findings.push(Finding::ok("lake", subject.as_str(), text));
    }
}

struct Probe<'a> {
    store: &'a dyn Store,
    path: &'a str,
    subject: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Probe<'_> {
    fn problem(&mut self, text: impl Into<String>, mend: &str) {
        self.findings.push(Finding::problem("lake-rights", self.subject, text).mend(mend));
    }

    /// A failed operation; `right` is what Google Cloud Storage asks for.
    fn failed(&mut self, doing: &str, error: &StoreError, right: &str) {
        match error {
            // Whatever the operation: without a token none can succeed, and there are two ways to get one.
            StoreError::Trouble { message, .. } | StoreError::Refused { message, .. } if message.contains("access token") => {
                let text = format!("{doing} fails, no usable Google credentials: {error}");
                self.findings.push(Finding::problem("lake-credentials", self.subject, text).mend(MEND_CREDENTIALS));
            }
            StoreError::Refused { .. } | StoreError::Denied { .. } => {
                let mend = format!(
                    "the account needs {right} (role Storage Object User on the bucket has it); for a directory, the right to write in it"
                );
                self.problem(format!("{doing} is refused: {error}"), &mend);
            }
            StoreError::Trouble { .. } => {
                self.problem(format!("{doing} fails: {error}"), "try again; if it stays, check network, bucket and disk");
            }
            StoreError::Precondition { .. } => {
                self.problem(format!("{doing}: {error}, which does not hold"), IGNORES);
            }
        }
    }

    async fn create(&mut self) -> Option<Generation> {
        match self.store.put_new(self.path, Bytes::from_static(FIRST)).await {
            Ok(generation) => Some(generation),
            // A success whose reply was lost is told so on the retry; nobody else has this name.
            Err(StoreError::Precondition { .. }) => self.store.head(self.path).await.ok().flatten().map(|meta| meta.generation),
            Err(error) => {
                self.failed("creating an object", &error, "storage.objects.create");
                if matches!(error, StoreError::Trouble { .. }) {
                    self.delete().await;
                }
                None
            }
        }
    }

    async fn create_again(&mut self) {
        match self.store.put_new(self.path, Bytes::from_static(SECOND)).await {
            Err(StoreError::Precondition { .. }) => {}
            Ok(_) => self.problem("an object that exists was created a second time", IGNORES),
            Err(error) => self.failed("creating an object a second time", &error, "storage.objects.create"),
        }
    }

    async fn read(&mut self, expected: &[u8]) {
        match self.store.get(self.path).await {
            Ok(Some(object)) if object.body == expected => {}
            Ok(Some(_)) => self.problem("an object reads otherwise than it was written", IGNORES),
            Ok(None) => self.problem("an object that was written is not there", IGNORES),
            Err(error) => self.failed("reading an object", &error, "storage.objects.get"),
        }
    }

    async fn replace(&mut self, generation: Generation) {
        let other = Generation(generation.0.wrapping_add(1));
        match self.store.replace_if(self.path, Bytes::from_static(SECOND), other).await {
            Err(StoreError::Precondition { .. }) => {}
            Ok(_) => return self.problem("an object was replaced though it had another generation", IGNORES),
            Err(error) => return self.failed("replacing an object", &error, REPLACE),
        }
        // The watermark is replaced; two writes of one object want their distance.
        tokio::time::sleep(self.store.min_replace_interval()).await;
        match self.store.replace_if(self.path, Bytes::from_static(SECOND), generation).await {
            Ok(_) => self.read(SECOND).await,
            Err(error) => self.failed("replacing an object", &error, REPLACE),
        }
    }

    async fn list(&mut self) {
        match self.store.list(self.path).await {
            Ok(found) if found.iter().any(|meta| meta.path == self.path) => {}
            Ok(_) => self.problem("an object that was written is not in the list", IGNORES),
            Err(error) => self.failed("listing objects", &error, "storage.objects.list"),
        }
    }

    async fn delete(&mut self) {
        if let Err(error) = self.store.delete(self.path).await {
            self.failed("deleting an object", &error, "storage.objects.delete");
            let uri = self.store.uri(self.path);
            self.findings
                .push(Finding::warning("lake-probe", self.subject, format!("the probe {uri} may be left behind")).mend("delete it"));
        }
    }
}

/// GCS counts a replacement as a deletion.
const REPLACE: &str = "storage.objects.create and storage.objects.delete";
const IGNORES: &str =
    "use Google Cloud Storage itself or a local directory: this store does not keep the conditions that exactly once rests on";

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use crate::store::{Meta, Object};
    use async_trait::async_trait;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::time::Duration;

    /// A store that keeps the contract but for one operation.
    #[derive(Debug, Default)]
    struct Bad {
        objects: Mutex<BTreeMap<String, (i64, Bytes)>>,
        fault: &'static str,
    }

    impl Bad {
        fn refuse(&self, operation: &str, path: &str) -> Result<(), StoreError> {
            let path = path.to_owned();
            match self.fault.strip_prefix(operation) {
                Some(" refused") => Err(StoreError::Refused { path, message: "403".into() }),
                Some(" in trouble") => Err(StoreError::Trouble { path, message: "503".into() }),
                _ => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Store for Bad {
        async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError> {
            self.refuse("put", path)?;
            let mut objects = self.objects.lock().unwrap();
            if objects.contains_key(path) && self.fault != "put overwrites" {
                return Err(StoreError::Precondition { path: path.into() });
            }
            objects.insert(path.into(), (7, body));
            match self.fault {
                "put loses the reply" => Err(StoreError::Precondition { path: path.into() }),
                _ => Ok(Generation(7)),
            }
        }
        async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError> {
            self.refuse("replace", path)?;
            let mut objects = self.objects.lock().unwrap();
            let held = objects.get(path).is_some_and(|(generation, _)| *generation == expected.0);
            if !held && self.fault != "replace ignores the generation" {
                return Err(StoreError::Precondition { path: path.into() });
            }
            objects.insert(path.into(), (9, body));
            Ok(Generation(9))
        }
        async fn get(&self, path: &str) -> Result<Option<Object>, StoreError> {
            self.refuse("get", path)?;
            let objects = self.objects.lock().unwrap();
            let changed = |body: &Bytes| if self.fault == "get changes" { Bytes::new() } else { body.clone() };
            Ok(objects.get(path).map(|(generation, body)| Object { body: changed(body), generation: Generation(*generation) }))
        }
        async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
            Ok(self.list(path).await?.pop())
        }
        async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
            self.refuse("list", prefix)?;
            let objects = self.objects.lock().unwrap();
            let meta = |(path, (generation, body)): (&String, &(i64, Bytes))| Meta {
                path: path.clone(),
                bytes: body.len() as u64,
                crc32c: Some(0),
                generation: Generation(*generation),
                modified_us: 0,
            };
            let forgets = self.fault == "list forgets";
            Ok(objects.iter().filter(|(path, _)| path.starts_with(prefix) && !forgets).map(meta).collect())
        }
        async fn delete(&self, path: &str) -> Result<(), StoreError> {
            self.refuse("delete", path)?;
            self.objects.lock().unwrap().remove(path);
            Ok(())
        }
        fn uri(&self, path: &str) -> String {
            format!("memory://{path}")
        }
        fn min_replace_interval(&self) -> Duration {
            Duration::ZERO
        }
    }

    async fn probed(fault: &'static str) -> (Vec<Finding>, usize) {
        let store = Bad { fault, ..Bad::default() };
        let findings = lake(&store).await;
        let left = store.objects.lock().unwrap().len();
        (findings, left)
    }

    #[tokio::test]
    async fn a_good_store_passes_and_is_left_clean() {
        for fault in ["", "put loses the reply"] {
            let (findings, left) = probed(fault).await;
            assert!(findings.len() == 1 && findings[0].severity == Severity::Ok && left == 0, "{fault}: {findings:?}");
        }
    }

    #[tokio::test]
    async fn each_failure_is_a_finding_of_its_own_and_nothing_is_left() {
        for (fault, text) in [
            ("put refused", "creating an object is refused"),
            ("put in trouble", "creating an object fails"),
            ("put overwrites", "second time"),
            ("replace refused", "replacing an object is refused"),
            ("replace in trouble", "replacing an object fails"),
            ("replace ignores the generation", "though it had another generation"),
            ("get refused", "reading an object is refused"),
            ("get changes", "reads otherwise"),
            ("list refused", "listing objects is refused"),
            ("list forgets", "not in the list"),
        ] {
            let (findings, left) = probed(fault).await;
            assert!(findings.iter().any(|f| f.text.contains(text) && f.mend.is_some()), "{fault}: {findings:?}");
            assert!(findings.iter().all(|f| f.severity == Severity::Problem), "{fault}: {findings:?}");
            assert_eq!(left, 0, "{fault}");
        }
    }

    #[tokio::test]
    async fn a_probe_that_stays_is_named() {
        let (findings, left) = probed("delete refused").await;
        assert!(left == 1 && findings[0].text.contains("deleting an object is refused"), "{findings:?}");
        assert!(findings[1].text.contains("memory://state/probe-"), "{findings:?}");
    }
}
