//! `dataform run` and `daily`, against a fake of Dataform's REST API: the service itself cannot be had here. It keeps what the public
//! reference says of compilations, invocations and their actions, and can be told to fail.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use world::World;

/// What the service holds, and what it will do.
#[derive(Default)]
struct Service {
    compilations: Vec<Value>,
    invocations: Vec<Value>,
    /// The next compilation has this error.
    broken: Option<String>,
    /// The next invocation's action fails so.
    failing: Option<String>,
    /// The reply to the next creation at this path is lost.
    losing: Option<&'static str>,
    /// The next creation at this path is never answered; it is there when the list was asked for so often.
    late: Option<(&'static str, usize)>,
    /// What is created so late, and how often the list must still be asked for.
    coming: Option<(String, Value, usize)>,
    /// The next invocation is refused.
    refusing: bool,
    /// Invocations have ended at the first look.
    quick: bool,
    looks: usize,
}

impl Service {
    /// The reply to a creation.
    fn created(&mut self, path: &str, made: Value) -> Reply {
        if let Some((_, asked)) = self.late.take_if(|(late, _)| *late == path) {
            self.coming = Some((path.to_owned(), made, asked));
            return Reply::Never;
        }
        let kept = if path == "compilationResults" { &mut self.compilations } else { &mut self.invocations };
        kept.push(made.clone());
        if self.losing.take_if(|losing| *losing == path).is_some() {
            return Reply::Now(StatusCode::BAD_GATEWAY.into_response());
        }
        Reply::Now(Json(shown(&made)).into_response())
    }

    /// Before a list is answered: what was created late may be there now.
    fn listed(&mut self, path: &str) {
        let Some((of, _, asked)) = &mut self.coming else { return };
        if of != path {
            return;
        }
        *asked -= 1;
        if *asked == 0
            && let Some((_, made, _)) = self.coming.take()
        {
            if path == "compilationResults" { self.compilations.push(made) } else { self.invocations.push(made) }
        }
    }
}

enum Reply {
    Now(Response),
    Never,
}

type Shared = Arc<Mutex<Service>>;

async fn answer(State(service): State<Shared>, request: Request) -> Response {
    let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let reply = reply(&mut service.lock().unwrap(), &method, &path, sent);
    match reply {
        Reply::Now(response) => response,
        Reply::Never => std::future::pending().await,
    }
}

fn reply(service: &mut Service, method: &str, path: &str, sent: Value) -> Reply {
    let rest = path.strip_prefix("/v1/projects/p/locations/l/repositories/r/").unwrap_or_default().to_owned();
    let response = match (method, rest.as_str()) {
        ("POST", "compilationResults") => {
            let name = format!("projects/p/locations/l/repositories/r/compilationResults/{}", service.compilations.len());
            let errors: Vec<Value> = service.broken.take().iter().map(|e| json!({"message": e, "path": "definitions/silver.js"})).collect();
            let mut found = sent;
            (found["name"], found["resolvedGitCommitSha"], found["compilationErrors"]) = (json!(name), json!("abc"), json!(errors));
            return service.created("compilationResults", found);
        }
        ("GET", "compilationResults") => {
            service.listed("compilationResults");
            Json(json!({ "compilationResults": service.compilations })).into_response()
        }
        ("GET", "releaseConfigs/prod") => {
            let own = json!({"defaultLocation": "EU", "vars": {"other": "1"}});
            Json(json!({"name": path, "gitCommitish": "v7", "codeCompilationConfig": own})).into_response()
        }
        ("POST", "workflowInvocations") if std::mem::take(&mut service.refusing) => StatusCode::FORBIDDEN.into_response(),
        ("POST", "workflowInvocations") => {
            let name = format!("projects/p/locations/l/repositories/r/workflowInvocations/{}", service.invocations.len());
            let mut found = sent;
            (found["name"], found["state"], found["failure"]) = (json!(name), json!("RUNNING"), json!(service.failing.take()));
            service.looks = 0;
            return service.created("workflowInvocations", found);
        }
        ("GET", "workflowInvocations") => {
            service.listed("workflowInvocations");
            let all: Vec<Value> = service.invocations.iter().map(shown).collect();
            Json(json!({ "workflowInvocations": all })).into_response()
        }
        ("GET", one) if one.starts_with("workflowInvocations/") => {
            let (id, query) = one["workflowInvocations/".len()..]
                .split_once(':')
                .map_or((&one["workflowInvocations/".len()..], false), |(id, _)| (id, true));
            let at: usize = id.parse().unwrap();
            service.looks += 1;
            let done = service.quick || service.looks > 1;
            let invocation = &mut service.invocations[at];
            let failure = invocation["failure"].clone();
            if done && invocation["state"] == "RUNNING" {
                invocation["state"] = json!(if failure.is_null() { "SUCCEEDED" } else { "FAILED" });
            }
            if !query {
                return Reply::Now(Json(shown(invocation)).into_response());
            }
            let state = if failure.is_null() { "SUCCEEDED" } else { "FAILED" };
            Json(json!({"workflowInvocationActions": [
                {"target": {"schema": "silver", "name": "donaciones"}, "state": state, "failureReason": failure.as_str().unwrap_or_default(), "bigqueryAction": {"jobId": "job-7", "sqlScript": "SELECT 1"},
                 "invocationTiming": {"startTime": "2026-11-24T07:00:00Z", "endTime": "2026-11-24T07:00:02.5Z"}},
                {"target": {"schema": "gold", "name": "dim_casos"}, "state": "SUCCEEDED"}]}))
            .into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    };
    Reply::Now(response)
}

fn shown(invocation: &Value) -> Value {
    let mut shown = invocation.clone();
    shown.as_object_mut().unwrap().remove("failure");
    shown
}

async fn world() -> (World, Shared) {
    let service = Shared::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(Arc::clone(&service));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let w = World::new().await;
    w.sql("CREATE TABLE donaciones (id int PRIMARY KEY, monto numeric); CREATE TABLE proveedores (id int PRIMARY KEY, nit text)").await;
    w.sql("INSERT INTO donaciones VALUES (1, 2.5); INSERT INTO proveedores VALUES (1, 'n')").await;
    let toml = format!(
        "[[table]]\nname = \"public.donaciones\"\n[[table]]\nname = \"public.proveedores\"\nmode = \"snapshot\"\n
         [bigquery]\nproject = \"p\"\nlocation = \"l\"\n
         [dataform]\nrepository = \"projects/p/locations/l/repositories/r\"\ngit_commitish = \"main\"\ntags = [\"silver\", \"gold\"]\n
         service_account = \"runner@p.iam.gserviceaccount.com\"\nendpoint = \"{endpoint}\"\n"
    );
    std::fs::write(w.dir.path().join("huella.toml"), toml).unwrap();
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    (w, service)
}

/// Runs without holding up the service, which lives in this process.
fn huella(w: &World, args: &[&str]) -> (i32, String) {
    tokio::task::block_in_place(|| w.run(args))
}

async fn next_cut(w: &World, id: i32) {
    w.sql(&format!("INSERT INTO donaciones VALUES ({id}, 1)")).await;
    assert_eq!(huella(w, &["run", "--until-caught-up"]).0, 0, "{}", w.log());
    assert_eq!(huella(w, &["publish"]).0, 0, "{}", w.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_merged_once_and_a_failure_is_told_and_tried_again() {
    let (w, service) = world().await;
    assert_eq!(huella(&w, &["dataform", "run"]).0, 5, "nothing is published");
    next_cut(&w, 2).await;
    let (code, out) = huella(&w, &["dataform", "run"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    assert!(out.contains("silver.donaciones  SUCCEEDED     2.5 s") && out.contains("2 actions, 0 failed"), "{out}");
    {
        let service = service.lock().unwrap();
        let compiled = &service.compilations[0];
        let cut: Value = serde_json::from_str(compiled["codeCompilationConfig"]["vars"]["huella_cut"].as_str().unwrap()).unwrap();
        assert_eq!((compiled["gitCommitish"].as_str(), cut["through"].as_str()), (Some("main"), Some(w.through().to_string().as_str())));
        let sent = &compiled["codeCompilationConfig"];
        assert_eq!((&sent["defaultDatabase"], &sent["defaultLocation"]), (&json!("p"), &json!("l")), "[bigquery] says where");
        assert_eq!(sent["vars"]["huella_max_age_seconds"], "172800");
        let invoked = &service.invocations[0]["invocationConfig"];
        assert_eq!(invoked["includedTags"], json!(["silver", "gold"]));
        assert_eq!(invoked["serviceAccount"], "runner@p.iam.gserviceaccount.com");
    }
    let (code, out) = huella(&w, &["dataform", "run"]);
    assert!(code == 0 && out.contains("merged already"), "{out}");
    assert_eq!(service.lock().unwrap().invocations.len(), 1);

    next_cut(&w, 3).await;
    service.lock().unwrap().failing = Some("silver: state moved".to_owned());
    let (code, out) = huella(&w, &["dataform", "run"]);
    assert!(code == 1 && out.contains("FAILED") && out.contains("silver: state moved") && out.contains("1 failed"), "{code} {out}");
    let told = errors(&w).into_iter().find(|line| line["action"] == "silver.donaciones").unwrap();
    assert_eq!((&told["job"], &told["failure"], &told["severity"]), (&json!("job-7"), &json!("silver: state moved"), &json!("ERROR")));
    assert!(w.log().contains("1 of 2 actions failed; silver.donaciones: silver: state moved"), "the reason is in the error\n{}", w.log());
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 3, "a failed cut is not called merged");

    next_cut(&w, 4).await;
    service.lock().unwrap().broken = Some("Unexpected token".to_owned());
    let (code, _) = huella(&w, &["dataform", "run"]);
    assert!(code == 3 && w.log().contains("definitions/silver.js: Unexpected token"), "{}", w.log());
    service.lock().unwrap().losing = Some("workflowInvocations");
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 4, "a start whose reply was lost is found, not repeated");
}

/// The log's lines of severity ERROR.
fn errors(w: &World) -> Vec<Value> {
    let lines = w.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["severity"] == "ERROR").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_without_an_answer_is_looked_for_and_never_made_twice() {
    let (w, service) = world().await;
    let run = || tokio::task::block_in_place(|| w.start(&["dataform", "run"], &[("HUELLA_DATAFORM_CALL_TIMEOUT", "1s")]).wait());
    let made = || {
        let service = service.lock().unwrap();
        (service.compilations.len(), service.invocations.len())
    };
    let mut id = 10;
    for (n, path) in ["compilationResults", "workflowInvocations"].into_iter().enumerate() {
        // The reply is lost; then there is none, and what was asked for is there at once, or later.
        for (m, late) in [None, Some(1), Some(3)].into_iter().enumerate() {
            id += 1;
            next_cut(&w, id).await;
            let before = made();
            {
                let mut service = service.lock().unwrap();
                match late {
                    None => service.losing = Some(path),
                    Some(asked) => service.late = Some((path, asked)),
                }
            }
            assert_eq!(run(), Some(0), "{path} {late:?}\n{}", w.log());
            assert_eq!(made(), (before.0 + 1, before.1 + 1), "{path} {late:?}: one of each, run {n}.{m}");
            let (code, out) = huella(&w, &["dataform", "run"]);
            assert!(code == 0 && out.contains("merged already"), "{path} {late:?}: {out}");
        }
    }
    // It never comes: the run ends, and the next one begins it, because by then it would be there.
    next_cut(&w, 30).await;
    let before = made().1;
    service.lock().unwrap().late = Some(("workflowInvocations", usize::MAX));
    assert_eq!(run(), Some(1), "{}", w.log());
    assert!(w.log().contains("no answer within 1 s"), "{}", w.log());
    service.lock().unwrap().coming = None;
    assert_eq!(run(), Some(0), "{}", w.log());
    assert_eq!(made().1, before + 1);
    // Refused is an answer: nothing is looked for, and once it is permitted the run starts.
    next_cut(&w, 31).await;
    service.lock().unwrap().refusing = true;
    assert_eq!(run(), Some(3), "{}", w.log());
    let record: Value = serde_json::from_slice(&std::fs::read(w.lake().join("state/dataform.json")).unwrap()).unwrap();
    assert_eq!(record["state"], "REFUSED");
    assert_eq!(run(), Some(0), "{}", w.log());
    assert_eq!(made().1, before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_configuration_keeps_its_own_location() {
    let (mut w, service) = world().await;
    let path = w.dir.path().join("huella.toml");
    let toml = std::fs::read_to_string(&path).unwrap().replace("git_commitish = \"main\"", "release_config = \"prod\"");
    std::fs::write(&path, toml).unwrap();
    w.env.push(("HUELLA_DATAFORM_MAX_AGE".to_owned(), "3h".to_owned()));
    next_cut(&w, 2).await;
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    let service = service.lock().unwrap();
    let sent = &service.compilations[0]["codeCompilationConfig"];
    assert_eq!((&sent["defaultDatabase"], &sent["defaultLocation"]), (&json!("p"), &json!("EU")));
    assert_eq!((&sent["vars"]["other"], &sent["vars"]["huella_max_age_seconds"]), (&json!("1"), &json!("10800")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_that_is_too_old_fails_the_command_though_it_is_merged() {
    let (w, service) = world().await;
    next_cut(&w, 2).await;
    let path = w.lake().join("published/cut.json");
    let mut cut = serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    cut["commit_time"] = "2026-01-01T00:00:00.000000Z".into();
    std::fs::write(&path, serde_json::to_vec(&cut).unwrap()).unwrap();
    let (code, out) = huella(&w, &["dataform", "run"]);
    assert!(code == 1 && out.contains("2 actions, 0 failed"), "it is merged all the same: {code} {out}");
    assert!(w.log().contains("the published cut is of 2026-01-01") && w.log().contains("dataform.max_age is 2days"), "{}", w.log());
    let (code, out) = huella(&w, &["dataform", "run"]);
    assert!(code == 1 && out.contains("merged already"), "{code} {out}");
    assert_eq!(service.lock().unwrap().invocations.len(), 1);
    let patient = || w.start(&["dataform", "run"], &[("HUELLA_DATAFORM_MAX_AGE", "36500days")]).wait();
    assert_eq!(tokio::task::block_in_place(patient), Some(0), "{}", w.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_the_record_a_cut_is_invoked_once() {
    let (w, service) = world().await;
    service.lock().unwrap().quick = true;
    let run = |faults: &str| tokio::task::block_in_place(|| w.start(&["dataform", "run"], &[("HUELLA_FAULTS", faults)]).wait());
    // Each way in which the answer to a write can fail to be its true one; the first run of all creates the record.
    for (n, failure) in ["lose", "conflict", "refuse(timeout)", "refuse(429)", "late(20ms)", "late(700ms)"].into_iter().enumerate() {
        next_cut(&w, 10 + n as i32).await;
        let writes = if n == 0 { ["put_new@1", "replace_if@1", "replace_if@2"] } else { ["replace_if@1", "replace_if@2", "replace_if@3"] };
        let rules = writes.map(|write| format!("{}={failure}", write.replace('@', ":state/dataform.json@")));
        assert_eq!(run(&rules.join("; ")), Some(0), "{failure}\n{}", w.log());
        for rule in &rules {
            assert!(w.log().contains(rule.as_str()), "{rule} did not happen\n{}", w.log());
        }
        let (code, out) = huella(&w, &["dataform", "run"]);
        assert!(code == 0 && out.contains("merged already"), "{failure}: {out}");
        assert_eq!(service.lock().unwrap().invocations.len(), n + 1, "{failure}");
    }
    // It ends between an invocation and its record: the next run finds the one that goes on.
    next_cut(&w, 20).await;
    assert_eq!(run("replace_if:state/dataform.json@2=forbid"), Some(5), "{}", w.log());
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 7, "its start was not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn daily_does_every_step_and_finds_done_what_is_done() {
    let (w, service) = world().await;
    // No writer runs, and the watermark is old: the catalogue's copy does not wait.
    let path = w.lake().join("watermark.json");
    let mut watermark = w.watermark().unwrap();
    watermark["commit_time"] = "2026-01-01T00:00:00.000000Z".into();
    std::fs::write(&path, serde_json::to_vec(&watermark).unwrap()).unwrap();
    let (code, out) = huella(&w, &["daily"]);
    assert_eq!(code, 0, "{out}\n{}", w.log());
    let cut: Value = serde_json::from_slice(&std::fs::read(w.lake().join("published/cut.json")).unwrap()).unwrap();
    assert_eq!(cut["tables"].as_object().unwrap().len(), 2, "the catalogue is in the cut: {cut}");
    assert!(w.log().contains("daily: done") && w.log().contains("public.donaciones: new, as donaciones"), "{}", w.log());
    let (code, out) = huella(&w, &["daily"]);
    assert!(code == 0 && out.contains("public.proveedores: unchanged") && out.contains("merged already"), "{out}\n{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 1);
    // Nobody replicates any more: what is published and merged is of the past, and the job says so.
    let mut watermark = w.watermark().unwrap();
    watermark["commit_time"] = "2026-01-01T00:00:00.000000Z".into();
    std::fs::write(&path, serde_json::to_vec(&watermark).unwrap()).unwrap();
    assert_eq!(huella(&w, &["daily"]).0, 1, "{}", w.log());
    assert!(w.log().contains("daily, step dataform: the published cut is of 2026-01-01"), "{}", w.log());
    // A second one at the same time ends politely.
    let turn = "SELECT pg_advisory_lock(hashtext('huella daily'), hashtext('huella ' || $1))";
    w.client.execute(turn, &[&w.lake().to_str().unwrap()]).await.unwrap();
    let (code, out) = huella(&w, &["daily"]);
    assert!(code == 0 && out.contains("another `huella daily`"), "{out}");
    w.sql("SELECT pg_advisory_unlock_all()").await;
    // A step that fails is told at the end, and those that do not need it were done.
    w.sql("DROP TABLE proveedores").await;
    assert_eq!(huella(&w, &["daily"]).0, 4, "{}", w.log());
    assert!(w.log().contains("snapshot failed") && w.log().contains("publish done"), "{}", w.log());
}
