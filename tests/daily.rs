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
    /// The reply to the next invocation is lost.
    losing: bool,
    /// Invocations have ended at the first look.
    quick: bool,
    looks: usize,
}

type Shared = Arc<Mutex<Service>>;

async fn answer(State(service): State<Shared>, request: Request) -> Response {
    let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut service = service.lock().unwrap();
    let rest = path.strip_prefix("/v1/projects/p/locations/l/repositories/r/").unwrap_or_default().to_owned();
    match (method.as_str(), rest.as_str()) {
        ("POST", "compilationResults") => {
            let name = format!("projects/p/locations/l/repositories/r/compilationResults/{}", service.compilations.len());
            let errors: Vec<Value> = service.broken.take().iter().map(|e| json!({"message": e, "path": "definitions/silver.js"})).collect();
            let mut found = sent;
            (found["name"], found["resolvedGitCommitSha"], found["compilationErrors"]) = (json!(name), json!("abc"), json!(errors));
            service.compilations.push(found.clone());
            Json(found).into_response()
        }
        ("POST", "workflowInvocations") => {
            let name = format!("projects/p/locations/l/repositories/r/workflowInvocations/{}", service.invocations.len());
            let mut found = sent;
            (found["name"], found["state"], found["failure"]) = (json!(name), json!("RUNNING"), json!(service.failing.take()));
            service.invocations.push(found.clone());
            service.looks = 0;
            found.as_object_mut().unwrap().remove("failure");
            if std::mem::take(&mut service.losing) { StatusCode::BAD_GATEWAY.into_response() } else { Json(found).into_response() }
        }
        ("GET", "workflowInvocations") => {
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
                return Json(shown(invocation)).into_response();
            }
            let state = if failure.is_null() { "SUCCEEDED" } else { "FAILED" };
            Json(json!({"workflowInvocationActions": [
                {"target": {"schema": "silver", "name": "donaciones"}, "state": state, "failureReason": failure.as_str().unwrap_or_default(),
                 "invocationTiming": {"startTime": "2026-11-24T07:00:00Z", "endTime": "2026-11-24T07:00:02.5Z"}},
                {"target": {"schema": "gold", "name": "dim_casos"}, "state": "SUCCEEDED"}]}))
            .into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
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
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 3, "a failed cut is not called merged");

    next_cut(&w, 4).await;
    service.lock().unwrap().broken = Some("Unexpected token".to_owned());
    let (code, _) = huella(&w, &["dataform", "run"]);
    assert!(code == 3 && w.log().contains("definitions/silver.js: Unexpected token"), "{}", w.log());
    service.lock().unwrap().losing = true;
    assert_eq!(huella(&w, &["dataform", "run"]).0, 0, "{}", w.log());
    assert_eq!(service.lock().unwrap().invocations.len(), 4, "a start whose reply was lost is found, not repeated");
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
