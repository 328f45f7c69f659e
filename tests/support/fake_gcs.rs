//! A bucket in this process that keeps every promise of the JSON and upload API which the store relies on.
//!
//! Owns: multipart and resumable uploads, media and metadata reads, paged listing, deletion; preconditions checked
//! when an upload is finished; CRC-32C verified; faults on request. Does not own: what the store makes of it.
//! Written from the public API reference; messages are those of the service where the store looks at them.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// What a request is for, as far as faults are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The whole of a multipart upload.
    Upload,
    /// The beginning of a resumable upload.
    Begin,
    /// The bytes of a resumable upload.
    Bytes,
    /// `alt=media`.
    Media,
    /// An object's metadata.
    Metadata,
    /// A page of a listing.
    List,
    /// A deletion.
    Delete,
}

/// What befalls a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing is done; this status and message.
    Status(u16, &'static str),
    /// Done, but this status is answered.
    DoneThenStatus(u16),
    /// Done, then the connection is closed without a reply.
    DoneThenDrop,
    /// Done, but no reply ever.
    DoneThenHang,
    /// Nothing is done, no reply ever.
    Hang,
    /// A byte of the content changes on its way, in either direction.
    Damage,
    /// The connection breaks after half of the content was sent.
    Cut,
    /// Another writer makes this object just before the request is carried out.
    Rival,
}

#[derive(Debug, Clone)]
struct Object {
    body: Bytes,
    generation: i64,
    crc: u32,
    updated: String,
}

#[derive(Debug)]
struct Session {
    name: String,
    if_generation: Option<i64>,
    crc: Option<u32>,
    received: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    bucket: String,
    base: String,
    page: usize,
    objects: BTreeMap<String, Object>,
    sessions: HashMap<u64, Session>,
    last_generation: i64,
    faults: Vec<(Call, u32, Fault)>,
    calls: Vec<Call>,
}

/// A running fake. It stops when dropped.
pub(crate) struct FakeGcs {
    inner: Arc<Mutex<Inner>>,
    base: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Shared = Arc<Mutex<Inner>>;
type Query = HashMap<String, String>;

impl FakeGcs {
    /// Serves one bucket; listings come in pages of at most `page` objects.
    pub(crate) async fn start(bucket: &str, page: usize) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let inner = Inner { bucket: bucket.into(), base: base.clone(), page, last_generation: 1_700_000_000_000_000, ..Inner::default() };
        let inner = Arc::new(Mutex::new(inner));
        let app = Router::new()
            .route("/upload/storage/v1/b/{bucket}/o", post(upload))
            .route("/session/{id}", put(upload_bytes))
            .route("/storage/v1/b/{bucket}/o", get(list))
            .route("/storage/v1/b/{bucket}/o/{object}", get(read).delete(delete))
            .with_state(inner.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { inner, base, server }
    }

    /// Base URL.
    pub(crate) fn base(&self) -> String {
        self.base.clone()
    }

    /// The next `times` requests of this kind suffer this fault.
    pub(crate) fn fault(&self, call: Call, times: u32, fault: Fault) {
        self.inner.lock().unwrap().faults.push((call, times, fault));
    }

    /// How many requests of this kind have come.
    pub(crate) fn calls(&self, call: Call) -> usize {
        self.inner.lock().unwrap().calls.iter().filter(|one| **one == call).count()
    }

    /// Faults that have not happened yet: a test that asked for them proved nothing.
    pub(crate) fn faults_left(&self) -> usize {
        self.inner.lock().unwrap().faults.len()
    }

    /// An object made by somebody else.
    pub(crate) fn plant(&self, name: &str, body: &'static [u8]) {
        self.inner.lock().unwrap().write(name, Bytes::from_static(body));
    }

    /// All names in the bucket.
    pub(crate) fn names(&self) -> Vec<String> {
        self.inner.lock().unwrap().objects.keys().cloned().collect()
    }
}

impl Inner {
    /// Notes the request and takes the fault meant for it.
    fn enter(&mut self, call: Call) -> Option<Fault> {
        self.calls.push(call);
        let at = self.faults.iter().position(|(of, _, _)| *of == call)?;
        let (_, left, fault) = &mut self.faults[at];
        let fault = fault.clone();
        *left -= 1;
        if *left == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }

    fn write(&mut self, name: &str, body: Bytes) -> Object {
        self.last_generation += 1;
        let crc = crc32c::crc32c(&body);
        let updated = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let object = Object { body, generation: self.last_generation, crc, updated };
        self.objects.insert(name.into(), object.clone());
        object
    }

    /// Finishes an upload: checksum, precondition and writing are one step.
    fn finish(&mut self, name: &str, body: Bytes, crc: Option<u32>, if_generation: Option<i64>) -> Response {
        if crc.is_some_and(|crc| crc != crc32c::crc32c(&body)) {
            return refusal(400, "Provided CRC32C doesn't match calculated CRC32C.");
        }
        if !self.holds(name, if_generation) {
            return refusal(412, "At least one of the pre-conditions you specified did not hold.");
        }
        let object = self.write(name, body);
        resource(&self.bucket, name, &object).to_string().into_response()
    }

    fn holds(&self, name: &str, if_generation: Option<i64>) -> bool {
        if_generation.is_none_or(|expected| expected == self.objects.get(name).map_or(0, |object| object.generation))
    }
}

fn resource(bucket: &str, name: &str, object: &Object) -> Value {
    json!({
        "kind": "storage#object", "bucket": bucket, "name": name, "size": object.body.len().to_string(), "crc32c": base64(&object.crc.to_be_bytes()),
        "generation": object.generation.to_string(), "metageneration": "1", "updated": object.updated, "timeCreated": object.updated,
    })
}

fn refusal(status: u16, message: &str) -> Response {
    let body =
        json!({"error": {"code": status, "message": message, "errors": [{"message": message, "domain": "global", "reason": "fake"}]}});
    (StatusCode::from_u16(status).unwrap(), [("content-type", "application/json")], body.to_string()).into_response()
}

fn query(uri: &Uri) -> Query {
    url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect()
}

/// What the reply becomes once the work is done. Faults that prevent the work were dealt with before.
async fn reply(fault: Option<Fault>, done: Response) -> Response {
    match fault {
        Some(Fault::DoneThenStatus(status)) => refusal(status, "injected"),
        Some(Fault::DoneThenHang) => std::future::pending().await,
        // Ends the connection's task, and with it the connection, without the panic hook's noise.
        Some(Fault::DoneThenDrop) => std::panic::resume_unwind(Box::new("connection dropped")),
        _ => done,
    }
}

/// Faults that keep a request from being carried out.
async fn before(fault: &Option<Fault>) -> Option<Response> {
    match fault {
        Some(Fault::Status(status, message)) => Some(refusal(*status, message)),
        Some(Fault::Hang) => std::future::pending().await,
        _ => None,
    }
}

fn damage(body: Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    bytes.into()
}

async fn upload(State(shared): State<Shared>, Path(bucket): Path<String>, request: Request) -> Response {
    let asked = query(request.uri());
    let resumable = asked.get("uploadType").map(String::as_str) == Some("resumable");
    let content_type = request.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let fault = shared.lock().unwrap().enter(if resumable { Call::Begin } else { Call::Upload });
    if let Some(refused) = before(&fault).await {
        return refused;
    }
    let done = {
        let mut inner = shared.lock().unwrap();
        if bucket != inner.bucket {
            refusal(404, "The specified bucket does not exist.")
        } else if resumable {
            begin(&mut inner, &asked, &body)
        } else {
            let Some((metadata, media)) = parts(&content_type, &body) else { return refusal(400, "not multipart/related") };
            let media = if matches!(fault, Some(Fault::Damage)) { damage(media) } else { media };
            let name = asked.get("name").cloned().or_else(|| metadata["name"].as_str().map(str::to_owned)).unwrap();
            if matches!(fault, Some(Fault::Rival)) {
                inner.write(&name, Bytes::from_static(b"rival"));
            }
            inner.finish(&name, media, stated_crc(&metadata), generation(&asked))
        }
    };
    reply(fault, done).await
}

fn begin(inner: &mut Inner, asked: &Query, body: &Bytes) -> Response {
    let metadata: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let name = asked.get("name").cloned().unwrap();
    if !inner.holds(&name, generation(asked)) {
        return refusal(412, "At least one of the pre-conditions you specified did not hold.");
    }
    let id = inner.calls.len() as u64;
    let session = Session { name, if_generation: generation(asked), crc: stated_crc(&metadata), received: Vec::new() };
    inner.sessions.insert(id, session);
    ([("location", format!("{}/session/{id}", inner.base))], "").into_response()
}

async fn upload_bytes(State(shared): State<Shared>, Path(id): Path<u64>, headers: HeaderMap, request: Request) -> Response {
    let range = headers.get("content-range").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let fault = shared.lock().unwrap().enter(Call::Bytes);
    if let Some(refused) = before(&fault).await {
        return refused;
    }
    let done = {
        let mut inner = shared.lock().unwrap();
        let body = if matches!(fault, Some(Fault::Damage)) { damage(body) } else { body };
        let Some(session) = inner.sessions.get_mut(&id) else { return refusal(404, "no such session") };
        // What lies before the end of what is there already is not written twice.
        let from = range.strip_prefix("bytes ").and_then(|r| r.split_once('-')?.0.parse::<usize>().ok()).unwrap_or(session.received.len());
        session.received.extend_from_slice(body.get(session.received.len() - from..).unwrap_or_default());
        let total = range.rsplit_once('/').and_then(|(_, total)| total.parse::<usize>().ok());
        if total == Some(session.received.len()) {
            let session = inner.sessions.remove(&id).unwrap();
            if matches!(fault, Some(Fault::Rival)) {
                inner.write(&session.name, Bytes::from_static(b"rival"));
            }
            inner.finish(&session.name, session.received.into(), session.crc, session.if_generation)
        } else {
            match session.received.len() {
                0 => StatusCode::PERMANENT_REDIRECT.into_response(),
                n => (StatusCode::PERMANENT_REDIRECT, [("range", format!("bytes=0-{}", n - 1))]).into_response(),
            }
        }
    };
    reply(fault, done).await
}

async fn read(State(shared): State<Shared>, Path((bucket, name)): Path<(String, String)>, uri: Uri) -> Response {
    let media = query(&uri).get("alt").map(String::as_str) == Some("media");
    let fault = shared.lock().unwrap().enter(if media { Call::Media } else { Call::Metadata });
    if let Some(refused) = before(&fault).await {
        return refused;
    }
    let (known, object) = {
        let inner = shared.lock().unwrap();
        (bucket == inner.bucket, inner.objects.get(&name).cloned())
    };
    let done = match object {
        _ if !known => refusal(404, "The specified bucket does not exist."),
        None if media => (StatusCode::NOT_FOUND, format!("No such object: {bucket}/{name}")).into_response(),
        None => refusal(404, &format!("No such object: {bucket}/{name}")),
        Some(object) if media => content(&object, &fault),
        Some(object) => resource(&bucket, &name, &object).to_string().into_response(),
    };
    reply(fault, done).await
}

fn content(object: &Object, fault: &Option<Fault>) -> Response {
    let headers = [
        ("x-goog-generation", object.generation.to_string()),
        ("x-goog-metageneration", "1".to_owned()),
        ("x-goog-stored-content-length", object.body.len().to_string()),
        ("x-goog-hash", format!("crc32c={}", base64(&object.crc.to_be_bytes()))),
        ("content-length", object.body.len().to_string()),
    ];
    let body = match fault {
        Some(Fault::Damage) => damage(object.body.clone()).into(),
        Some(Fault::Cut) => {
            let half = object.body.slice(..object.body.len() / 2);
            Body::from_stream(futures_util::stream::iter([Ok(half), Err(std::io::Error::other("cut"))]))
        }
        _ => Body::from(object.body.clone()),
    };
    (headers, body).into_response()
}

async fn list(State(shared): State<Shared>, Path(bucket): Path<String>, uri: Uri) -> Response {
    let asked = query(&uri);
    let fault = shared.lock().unwrap().enter(Call::List);
    if let Some(refused) = before(&fault).await {
        return refused;
    }
    let done = {
        let inner = shared.lock().unwrap();
        if bucket == inner.bucket { page(&inner, &asked) } else { refusal(404, "The specified bucket does not exist.") }
    };
    reply(fault, done).await
}

/// A page; its token is the last name given out.
fn page(inner: &Inner, asked: &Query) -> Response {
    let prefix = asked.get("prefix").map_or("", String::as_str);
    let size = asked.get("maxResults").and_then(|n| n.parse().ok()).unwrap_or(1000).min(inner.page);
    let after = asked.get("pageToken");
    let mut rest = inner.objects.iter().filter(|(name, _)| name.starts_with(prefix) && after.is_none_or(|after| *name > after)).peekable();
    let items: Vec<_> = rest.by_ref().take(size).map(|(name, object)| resource(&inner.bucket, name, object)).collect();
    let mut answer = json!({"kind": "storage#objects"});
    if let (Some(last), Some(_)) = (items.last(), rest.peek()) {
        answer["nextPageToken"] = last["name"].clone();
    }
    if !items.is_empty() {
        answer["items"] = items.into(); // absent when empty, as the service does
    }
    answer.to_string().into_response()
}

async fn delete(State(shared): State<Shared>, Path((bucket, name)): Path<(String, String)>) -> Response {
    let fault = shared.lock().unwrap().enter(Call::Delete);
    if let Some(refused) = before(&fault).await {
        return refused;
    }
    let done = {
        let mut inner = shared.lock().unwrap();
        if bucket != inner.bucket {
            refusal(404, "The specified bucket does not exist.")
        } else if inner.objects.remove(&name).is_some() {
            StatusCode::NO_CONTENT.into_response()
        } else {
            refusal(404, &format!("No such object: {bucket}/{name}"))
        }
    };
    reply(fault, done).await
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn generation(asked: &Query) -> Option<i64> {
    asked.get("ifGenerationMatch").map(|text| text.parse().unwrap())
}

fn stated_crc(metadata: &Value) -> Option<u32> {
    let text = metadata["crc32c"].as_str()?;
    let digit = |c: u8| BASE64.iter().position(|d| *d == c).unwrap() as u64;
    let bits = text.trim_end_matches('=').bytes().fold(0_u64, |bits, c| bits << 6 | digit(c));
    Some((bits >> 4) as u32)
}

/// Metadata and content of a multipart/related body of two parts.
fn parts(content_type: &str, body: &Bytes) -> Option<(Value, Bytes)> {
    let boundary = content_type.split("boundary=").nth(1)?.trim_matches('"');
    let delimiter = format!("--{boundary}");
    let first = find(body, delimiter.as_bytes(), 0)?;
    let second = find(body, format!("\r\n{delimiter}").as_bytes(), first + delimiter.len())?;
    let end = find_last(body, format!("\r\n{delimiter}--").as_bytes())?;
    let metadata_start = find(body, b"\r\n\r\n", first)? + 4;
    let media_start = find(body, b"\r\n\r\n", second + 2 + delimiter.len())? + 4;
    Some((serde_json::from_slice(&body[metadata_start..second]).ok()?, body.slice(media_start..end)))
}

fn find(body: &[u8], what: &[u8], from: usize) -> Option<usize> {
    body.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| from + at)
}

fn find_last(body: &[u8], what: &[u8]) -> Option<usize> {
    body.windows(what.len()).rposition(|window| window == what)
}

fn base64(bytes: &[u8; 4]) -> String {
    let bits = u64::from(u32::from_be_bytes(*bytes)) << 4;
    let text: String = (0..6).rev().map(|six| BASE64[(bits >> (six * 6) & 63) as usize] as char).collect();
    text + "=="
}
