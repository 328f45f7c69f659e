//! A store that fails as it is told: the same plan and the same operations give the same faults.
//!
//! Owns: the plan's grammar, the counting of operations, the faults. Does not own: the objects (another store does).
//! Invariants: without a matching rule it is the inner store; a fault answers only with what a real store may answer.

use super::{Generation, Meta, Object, Store, StoreError, Upload};
use crate::error::{Error, Result as CrateResult};
use async_trait::async_trait;
use bytes::Bytes;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The operations of [`Store`] that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    PutNew,
    ReplaceIf,
    Get,
    Head,
    List,
    Delete,
}

impl Op {
    const NAMES: [(&'static str, Op); 6] = [
        ("put_new", Op::PutNew),
        ("replace_if", Op::ReplaceIf),
        ("get", Op::Get),
        ("head", Op::Head),
        ("list", Op::List),
        ("delete", Op::Delete),
    ];

    fn is_conditional(self) -> bool {
        matches!(self, Op::PutNew | Op::ReplaceIf)
    }
}

/// What happens instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Refuse(&'static str),
    Forbid,
    Lose,
    Conflict,
    Late(Duration),
    Slow(Duration),
}

impl Fault {
    /// Whether a store could answer so to this operation.
    fn can_befall(self, op: Op) -> bool {
        match self {
            Fault::Conflict => op.is_conditional(),
            Fault::Late(_) => op.is_conditional() || op == Op::Delete,
            _ => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: String,
    /// `None`: every operation that the fault can befall.
    op: Option<Op>,
    path: String,
    from_start: bool,
    first: u64,
    last: u64,
    fault: Fault,
    until: Option<Duration>,
}

impl Rule {
    fn concerns(&self, op: Op, path: &str) -> bool {
        let place = if self.from_start { path.starts_with(&self.path) } else { path.contains(&self.path) };
        place && self.op.map_or(self.fault.can_befall(op), |only| only == op)
    }
}

/// Which operations fail, and how. See [`Plan::parse`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan(Vec<Rule>);

impl Plan {
    /// Reads a plan.
    ///
    /// ```text
    /// plan   = rule { ";" rule }                        blanks around a rule do not matter
    /// rule   = op [ ":" path ] [ "@" nth ] "=" fault [ "<" duration ]
    /// op     = "put_new" | "replace_if" | "get" | "head" | "list" | "delete" | "*"
    /// path   = text that the path (of a list: the prefix) contains; with "^" before it: begins with. Default: any path
    /// nth    = N | N ".." M | N ".."                    counted from 1 among the operations that op and path name
    /// fault  = "refuse" [ "(" "429" | "503" | "timeout" ")" ]   not done; Trouble (default 503)
    ///        | "forbid"                                 not done; Refused
    ///        | "lose"                                   done; Trouble (Precondition if that is what the store said)
    ///        | "conflict"                               done; Precondition     put_new, replace_if
    ///        | "late(" duration ")"                     Trouble now; done after the duration     put_new, replace_if, delete
    ///        | "slow(" duration ")"                     done after the duration, its true answer
    /// duration = as in "500ms", "2s", "1m 30s"; after "<": only until so long after the store was opened
    /// ```
    ///
    /// The `=` before the fault is a rule's last one, the `@` its last one before that, so paths may have both. Of
    /// several rules that hold, the first decides; each counts its operations by itself, whether it decides or not,
    /// and whether its time is over or not. `*` means the operations that the fault can befall.
    ///
    /// Example: `replace_if:watermark.json@2=lose; put_new:^tables/@1..3=refuse(429); *=refuse<120s`
    ///
    /// # Errors
    /// `Kind::Config`, naming the rule and what is wrong with it.
    pub fn parse(text: &str) -> CrateResult<Self> {
        text.split(';').map(|rule| parse_rule(rule.trim())).collect::<CrateResult<Vec<_>>>().map(Self)
    }
}

fn parse_rule(text: &str) -> CrateResult<Rule> {
    let wrong = |what: String| Error::config(format!("fault rule {text:?}: {what}"));
    let (place, action) = text.rsplit_once('=').ok_or_else(|| wrong("no '=' before a fault".into()))?;
    let (action, until) = match action.split_once('<') {
        Some((action, limit)) => (action.trim(), Some(parse_duration(limit).map_err(&wrong)?)),
        None => (action.trim(), None),
    };
    let fault = parse_fault(action).map_err(&wrong)?;
    let (place, nth) = match place.rsplit_once('@') {
        Some((place, nth)) => (place, Some(nth)),
        None => (place, None),
    };
    let (first, last) = nth.map_or(Ok((1, u64::MAX)), parse_nth).map_err(&wrong)?;
    let (op, path) = match place.split_once(':') {
        Some((_, "" | "^")) => return Err(wrong("nothing after ':'".into())),
        Some((op, path)) => (op.trim(), path),
        None => (place.trim(), ""),
    };
    let op = match op {
        "*" => None,
        name => {
            let known = Op::NAMES.iter().find(|(known, _)| *known == name);
            Some(
                known
                    .ok_or_else(|| wrong(format!("no operation {name:?}; there are put_new, replace_if, get, head, list, delete and *")))?
                    .1,
            )
        }
    };
    if op.is_some_and(|op| !fault.can_befall(op)) {
        return Err(wrong("no store answers so to this operation".into()));
    }
    let (from_start, path) = path.strip_prefix('^').map_or((false, path), |path| (true, path));
    Ok(Rule { text: text.into(), op, path: path.into(), from_start, first, last, fault, until })
}

fn parse_nth(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0);
    let range = match text.split_once("..") {
        Some((first, "")) => number(first).map(|first| (first, u64::MAX)),
        Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
        None => number(text).map(|n| (n, n)),
    };
    range.ok_or_else(|| format!("{text:?} after '@' is none of N, N..M, N.. (from 1)"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|e| format!("duration {text:?}: {e}"))
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    let (name, argument) = match text.split_once('(') {
        Some((name, rest)) => (name, Some(rest.strip_suffix(')').ok_or("no ')' at the end")?)),
        None => (text, None),
    };
    match (name, argument) {
        ("refuse", None | Some("503")) => Ok(Fault::Refuse("HTTP 503")),
        ("refuse", Some("429")) => Ok(Fault::Refuse("HTTP 429")),
        ("refuse", Some("timeout")) => Ok(Fault::Refuse("no answer in time")),
        ("forbid", None) => Ok(Fault::Forbid),
        ("lose", None) => Ok(Fault::Lose),
        ("conflict", None) => Ok(Fault::Conflict),
        ("late", Some(delay)) => parse_duration(delay).map(Fault::Late),
        ("slow", Some(delay)) => parse_duration(delay).map(Fault::Slow),
        _ => Err(format!("no fault {text:?}; there are refuse, refuse(429|503|timeout), forbid, lose, conflict, late(TIME), slow(TIME)")),
    }
}

/// A store behind a plan of faults.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    plan: Plan,
    /// Operations that each rule has named. Counted together: of two operations at once one is before the other for all rules.
    seen: Mutex<Vec<u64>>,
    fired: AtomicU64,
    opened: Instant,
}

impl FaultStore {
    /// Puts the plan before the store; its clock starts now.
    pub fn new(inner: Arc<dyn Store>, plan: Plan) -> Self {
        let seen = Mutex::new(vec![0; plan.0.len()]);
        Self { inner, plan, seen, fired: AtomicU64::new(0), opened: Instant::now() }
    }

    /// How many operations were given a fault so far: a test that expects one must not pass without it.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    /// The fault of this operation. Counts it for every rule that names it.
    fn fault(&self, op: Op, path: &str) -> Option<Fault> {
        let mut decided: Option<&Rule> = None;
        let mut counts = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (rule, seen) in self.plan.0.iter().zip(counts.iter_mut()).filter(|(rule, _)| rule.concerns(op, path)) {
            *seen += 1;
            let nth = *seen;
            let in_time = rule.until.is_none_or(|until| self.opened.elapsed() < until);
            if in_time && (rule.first..=rule.last).contains(&nth) {
                decided = decided.or(Some(rule));
            }
        }
        drop(counts);
        let rule = decided?;
        self.fired.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(path, rule = rule.text, "injected fault");
        Some(rule.fault)
    }

    async fn run<T, F>(&self, op: Op, path: &str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        befall(self.fault(op, path), path, work).await
    }
}

/// Does the operation, or what the plan says instead. `work` owns what it needs, so that it can land late.
async fn befall<T, F>(fault: Option<Fault>, path: &str, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    match fault {
        None => work.await,
        Some(Fault::Refuse(said)) => Err(StoreError::trouble(path, format!("{said} (injected)"))),
        Some(Fault::Forbid) => Err(StoreError::refused(path, "HTTP 403 (injected)")),
        Some(Fault::Lose) => {
            work.await?;
            Err(StoreError::trouble(path, "the reply was lost (injected)"))
        }
        Some(Fault::Conflict) => {
            work.await?;
            Err(StoreError::precondition(path))
        }
        Some(Fault::Late(delay)) => {
            let shown = path.to_owned();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let landed = work.await.map(drop);
                tracing::warn!(path = shown, ?landed, "injected fault: the late write arrived");
            });
            Err(StoreError::trouble(path, "no answer in time (injected)"))
        }
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            work.await
        }
    }
}

/// An upload whose end suffers a fault. The plan counts it as `put_new`, when it begins.
#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn Upload>,
    path: String,
    fault: Option<Fault>,
}

#[async_trait]
impl Upload for FaultUpload {
    async fn write(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.inner.write(part).await
    }

    async fn finish(self: Box<Self>, crc32c: u32) -> Result<Generation, StoreError> {
        let Self { inner, path, fault } = *self;
        befall(fault, &path, async move { inner.finish(crc32c).await }).await
    }
}

#[async_trait]
impl Store for FaultStore {
    async fn put_new(&self, path: &str, body: Bytes) -> Result<Generation, StoreError> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        self.run(Op::PutNew, path, async move { inner.put_new(&own, body).await }).await
    }

    async fn put_new_in_parts(&self, path: &str) -> Result<Option<Box<dyn Upload>>, StoreError> {
        let Some(inner) = self.inner.put_new_in_parts(path).await? else { return Ok(None) };
        Ok(Some(Box::new(FaultUpload { inner, path: path.to_owned(), fault: self.fault(Op::PutNew, path) })))
    }

    async fn replace_if(&self, path: &str, body: Bytes, expected: Generation) -> Result<Generation, StoreError> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        self.run(Op::ReplaceIf, path, async move { inner.replace_if(&own, body, expected).await }).await
    }

    async fn get(&self, path: &str) -> Result<Option<Object>, StoreError> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        self.run(Op::Get, path, async move { inner.get(&own).await }).await
    }

    async fn head(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        self.run(Op::Head, path, async move { inner.head(&own).await }).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Meta>, StoreError> {
        let (inner, own) = (self.inner.clone(), prefix.to_owned());
        self.run(Op::List, prefix, async move { inner.list(&own).await }).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        self.run(Op::Delete, path, async move { inner.delete(&own).await }).await
    }

    fn uri(&self, path: &str) -> String {
        self.inner.uri(path)
    }

    fn min_replace_interval(&self) -> Duration {
        self.inner.min_replace_interval()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::LocalStore;

    fn faulty(plan: &str) -> (tempfile::TempDir, Arc<LocalStore>, FaultStore) {
        let folder = tempfile::tempdir().unwrap();
        let inner = Arc::new(LocalStore::open(folder.path().join("lake")).unwrap());
        let store = FaultStore::new(inner.clone(), Plan::parse(plan).unwrap());
        (folder, inner, store)
    }

    fn body(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn is_trouble<T>(result: Result<T, StoreError>) -> bool {
        matches!(result, Err(StoreError::Trouble { .. }))
    }

    #[test]
    fn a_plan_is_read_as_its_grammar_says() {
        let plan = Plan::parse(
            "replace_if:watermark.json@2=lose; put_new:^tables/a@b/dt=2026-11-24@1..3=refuse(429) ;*=refuse<120s;get@4..=slow(1m 30s)",
        )
        .unwrap();
        let rule = |text: &str, op, path: &str, from_start, first, last, fault, until| Rule {
            text: text.into(),
            op,
            path: path.into(),
            from_start,
            first,
            last,
            fault,
            until,
        };
        let all = u64::MAX;
        assert_eq!(
            plan.0,
            [
                rule("replace_if:watermark.json@2=lose", Some(Op::ReplaceIf), "watermark.json", false, 2, 2, Fault::Lose, None),
                rule(
                    "put_new:^tables/a@b/dt=2026-11-24@1..3=refuse(429)",
                    Some(Op::PutNew),
                    "tables/a@b/dt=2026-11-24",
                    true,
                    1,
                    3,
                    Fault::Refuse("HTTP 429"),
                    None
                ),
                rule("*=refuse<120s", None, "", false, 1, all, Fault::Refuse("HTTP 503"), Some(Duration::from_secs(120))),
                rule("get@4..=slow(1m 30s)", Some(Op::Get), "", false, 4, all, Fault::Slow(Duration::from_secs(90)), None),
            ]
        );
    }

    #[test]
    fn nonsense_in_a_plan_is_a_configuration_error_that_quotes_the_rule() {
        for text in [
            "",
            ";",
            "lose",
            "put_new",
            "put_new=",
            "put=lose",
            "put_new:=lose",
            "put_new:^=lose",
            "put_new@0=lose",
            "put_new@3..2=lose",
            "put_new@x=lose",
            "put_new@=lose",
            "put_new=lose(1s)",
            "put_new=late",
            "put_new=late(1s",
            "put_new=late(soon)",
            "put_new=refuse(404)",
            "put_new=lose<",
            "put_new=lose<x",
            "get=conflict",
            "list=late(1s)",
            "put_new=lose;;get=lose",
            "put_new@1...3=lose",
            "=lose",
        ] {
            let error = Plan::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text:?}");
            assert!(error.to_string().starts_with("fault rule \""), "{text:?}: {error}");
        }
    }

    #[tokio::test]
    async fn only_the_nth_matching_operation_fails() {
        let (_folder, inner, store) = faulty("put_new:^a/@2..3=refuse");
        assert!(store.put_new("a/1", body("x")).await.is_ok());
        assert!(store.put_new("b/a/", body("x")).await.is_err(), "not a path, and not counted");
        assert!(store.put_new("b/a", body("x")).await.is_ok());
        assert!(is_trouble(store.put_new("a/2", body("x")).await));
        assert!(is_trouble(store.put_new("a/3", body("x")).await));
        assert!(store.put_new("a/4", body("x")).await.is_ok());
        assert_eq!(store.fired(), 2);
        let left: Vec<_> = inner.list("").await.unwrap().into_iter().map(|meta| meta.path).collect();
        assert_eq!(left, ["a/1", "a/4", "b/a"]);
    }

    #[tokio::test]
    async fn a_lost_reply_is_trouble_and_the_object_is_there() {
        let (_folder, inner, store) = faulty("put_new=lose");
        assert!(is_trouble(store.put_new("a", body("x")).await));
        assert_eq!(inner.get("a").await.unwrap().unwrap().body, "x");
        assert!(matches!(store.put_new("a", body("y")).await, Err(StoreError::Precondition { .. })));
    }

    #[tokio::test]
    async fn a_conflict_after_success_replaces_and_says_precondition() {
        let (_folder, inner, store) = faulty("*=conflict");
        let old = inner.put_new("a", body("x")).await.unwrap();
        assert!(matches!(store.replace_if("a", body("y"), old).await, Err(StoreError::Precondition { .. })));
        assert_eq!(store.get("a").await.unwrap().unwrap().body, "y", "and a read is not concerned");
    }

    #[tokio::test]
    async fn a_late_write_lands_after_the_caller_was_told_trouble() {
        let (_folder, inner, store) = faulty("put_new=late(50ms)");
        assert!(is_trouble(store.put_new("a", body("x")).await));
        assert!(inner.get("a").await.unwrap().is_none());
        let landed = async {
            while inner.get("a").await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), landed).await.unwrap();
    }

    #[tokio::test]
    async fn forbidden_is_refused_and_slow_is_only_slow() {
        let (_folder, inner, store) = faulty("delete=forbid;head=slow(30ms)");
        inner.put_new("a", body("x")).await.unwrap();
        assert!(matches!(store.delete("a").await, Err(StoreError::Refused { .. })));
        let begun = Instant::now();
        assert_eq!(store.head("a").await.unwrap().unwrap().bytes, 1);
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert_eq!(store.list("").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_rule_with_a_time_limit_ends_by_itself() {
        let (_folder, _inner, store) = faulty("*=refuse(timeout)<100ms");
        assert!(is_trouble(store.list("").await));
        tokio::time::sleep(Duration::from_millis(110)).await;
        assert!(store.list("").await.is_ok());
    }
}
