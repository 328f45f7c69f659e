//! Dataform's API, as much as a run needs: compile, invoke, ask.
//!
//! Owns: the client, what is sent and read, which failures may pass. Does not own: the order of the calls (`run`).
//! Invariants: reads are repeated, creations never: whoever creates looks first whether it is there. Source of the rules: Dataform's
//! REST reference, v1.

use crate::config::{Code, Dataform as Settings};
use crate::error::{Error, Kind, Result};
use google_cloud_auth::credentials::{Builder as CredentialsBuilder, Credentials, anonymous};
use google_cloud_dataform_v1::client::Dataform;
use google_cloud_dataform_v1::model::compilation_result::Source;
use google_cloud_dataform_v1::model::workflow_invocation::{CompilationSource, State};
use google_cloud_dataform_v1::model::{
    CodeCompilationConfig, CompilationResult, InvocationConfig, WorkflowInvocation, WorkflowInvocationAction,
};
use google_cloud_gax::paginator::ItemPaginator;
use std::time::Duration;

/// Google's endpoint unless the configuration has another.
const ENDPOINT: &str = "https://dataform.googleapis.com";
/// Compilation variable that carries the cut.
const CUT: &str = "huella_cut";
/// How long one call may take; a compilation of a large repository takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// Invocations that are looked through for one of ours, the newest of any order the service lists them in.
const LOOKED_THROUGH_MAX: usize = 1_000;

/// A repository.
pub(super) struct Repository<'a> {
    client: Dataform,
    settings: &'a Settings,
}

/// A compilation that has no errors.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    /// Resource name.
    pub(super) name: String,
    /// The commit that was compiled.
    pub(super) commit: String,
}

/// How an invocation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It goes on.
    Running,
    /// All actions succeeded.
    Succeeded,
    /// It ended otherwise, as said.
    Ended(String),
}

/// One action of an invocation.
#[derive(Debug, Clone)]
pub(super) struct Action {
    pub(super) target: String,
    pub(super) state: String,
    /// Milliseconds, if it has begun and ended.
    pub(super) took_ms: Option<i64>,
    pub(super) failure: String,
}

impl<'a> Repository<'a> {
    /// Opens it; a plain `http://` endpoint (an emulator) is asked without credentials.
    pub(super) async fn open(settings: &'a Settings) -> Result<Self> {
        let endpoint = settings.endpoint.as_deref().unwrap_or(ENDPOINT);
        // Google's crates and ours speak TLS with the same provider; a second installation changes nothing.
        let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let credentials = credentials(endpoint)?;
        let client = Dataform::builder().with_endpoint(endpoint).with_credentials(credentials).build().await;
        let client = client.map_err(|e| Error::config(format!("dataform.endpoint = {endpoint:?} cannot be used")).with_source(e))?;
        Ok(Self { client, settings })
    }

    /// Compiles the configured code with the cut as a variable.
    ///
    /// # Errors
    /// `Kind::Config` with every compilation error.
    pub(super) async fn compile(&self, cut: &str) -> Result<Compiled> {
        let (commitish, mut config) = match &self.settings.code {
            Code::GitCommitish(commitish) => (commitish.clone(), CodeCompilationConfig::new()),
            // A release configuration's own compilation takes no variables: its commit and settings are compiled with ours.
            Code::ReleaseConfig(id) => {
                let name = if id.contains('/') { id.clone() } else { format!("{}/releaseConfigs/{id}", self.settings.repository) };
                let found = self
                    .client
                    .get_release_config()
                    .set_name(name)
                    .send()
                    .await
                    .map_err(|e| failed("reading the release configuration", e))?;
                (found.git_commitish, found.code_compilation_config.unwrap_or_default())
            }
        };
        config.vars.insert(CUT.to_owned(), cut.to_owned());
        let wanted = CompilationResult::new().set_source(Source::GitCommitish(commitish)).set_code_compilation_config(config);
        let sending = self.client.create_compilation_result().set_parent(&self.settings.repository).set_compilation_result(wanted).send();
        let doing = "compiling the Dataform repository";
        let compiled = patient(doing, sending).await?;
        if !compiled.compilation_errors.is_empty() {
            let lines: Vec<String> = compiled.compilation_errors.iter().map(|e| format!("{}: {}", e.path, e.message)).collect();
            return Err(Error::config(format!("the Dataform repository does not compile:\n{}", lines.join("\n"))));
        }
        Ok(Compiled { name: compiled.name, commit: compiled.resolved_git_commit_sha })
    }

    /// The invocation of a compilation, if there is one already.
    pub(super) async fn invocation_of(&self, compilation: &str) -> Result<Option<String>> {
        let mut all = self.client.list_workflow_invocations().set_parent(&self.settings.repository).by_item();
        for _ in 0..LOOKED_THROUGH_MAX {
            let Some(next) = all.next().await else { return Ok(None) };
            let next = next.map_err(|e| failed("listing the repository's invocations", e))?;
            if matches!(&next.compilation_source, Some(CompilationSource::CompilationResult(of)) if of == compilation) {
                return Ok(Some(next.name));
            }
        }
        Ok(None)
    }

    /// Starts the configured tags; returns the invocation's name.
    pub(super) async fn invoke(&self, compilation: &str) -> Result<String> {
        let mut config = InvocationConfig::new().set_included_tags(self.settings.tags.clone());
        if let Some(account) = &self.settings.service_account {
            config = config.set_service_account(account);
        }
        let source = CompilationSource::CompilationResult(compilation.to_owned());
        let wanted = WorkflowInvocation::new().set_compilation_source(source).set_invocation_config(config);
        let sending = self.client.create_workflow_invocation().set_parent(&self.settings.repository).set_workflow_invocation(wanted).send();
        Ok(patient("starting the Dataform run", sending).await?.name)
    }

    /// How an invocation stands; `None` if there is none of that name any more.
    pub(super) async fn standing(&self, invocation: &str) -> Result<Option<Standing>> {
        let found = match self.client.get_workflow_invocation().set_name(invocation).send().await {
            Ok(found) => found,
            Err(error) if error.http_status_code() == Some(404) => return Ok(None),
            Err(error) => return Err(failed("asking for the Dataform run", error)),
        };
        Ok(Some(match found.state {
            State::Running | State::Canceling | State::Unspecified => Standing::Running,
            State::Succeeded => Standing::Succeeded,
            other => Standing::Ended(other.to_string()),
        }))
    }

    /// All actions of an invocation.
    pub(super) async fn actions(&self, invocation: &str) -> Result<Vec<Action>> {
        let mut all = self.client.query_workflow_invocation_actions().set_name(invocation).by_item();
        let mut actions = Vec::new();
        while let Some(next) = all.next().await {
            actions.push(action(next.map_err(|e| failed("asking for the run's actions", e))?));
        }
        Ok(actions)
    }
}

fn credentials(endpoint: &str) -> Result<Credentials> {
    if endpoint.starts_with("http://") {
        return Ok(anonymous::Builder::new().build());
    }
    CredentialsBuilder::default().build().map_err(|e| {
        let mend = "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login";
        Error::config(format!("no Google credentials: {mend}")).with_source(e)
    })
}

fn action(found: WorkflowInvocationAction) -> Action {
    let target = found.target.map(|t| [t.schema, t.name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("."));
    let timing = found.invocation_timing.as_ref();
    let ms = |seconds: i64, nanos: i32| seconds * 1000 + i64::from(nanos) / 1_000_000;
    let begun = timing.and_then(|t| t.start_time.as_ref()).map(|at| ms(at.seconds(), at.nanos()));
    let ended = timing.and_then(|t| t.end_time.as_ref()).map(|at| ms(at.seconds(), at.nanos()));
    Action {
        target: target.unwrap_or_default(),
        state: found.state.to_string(),
        took_ms: begun.zip(ended).map(|(begun, ended)| ended - begun),
        failure: found.failure_reason,
    }
}

async fn patient<T>(doing: &str, sending: impl Future<Output = google_cloud_dataform_v1::Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, sending).await {
        Ok(answer) => answer.map_err(|e| failed(doing, e)),
        Err(_) => Err(Error::retry(format!("{doing}: no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// What the service refuses for good is the configuration's fault; everything else may pass.
fn failed(doing: &str, error: google_cloud_dataform_v1::Error) -> Error {
    let kind = match error.http_status_code() {
        Some(400 | 401 | 403 | 404 | 412) => Kind::Config,
        _ => Kind::Retry,
    };
    Error::new(kind, format!("{doing}: {error}"))
}
