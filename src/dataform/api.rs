//! Dataform's API, as much as a run needs: compile, invoke, ask.
//!
//! Owns: the client, what is sent and read, which failures may pass. Does not own: the order of the calls (`run`).
//! Invariants: reads are repeated, creations never: one whose answer is missing or late may have been made, so it is looked for, for a while,
//! by what only it can have (a compilation's label, an invocation's compilation). Source of the rules: Dataform's REST reference, v1.

use crate::commit::random;
use crate::config::{BigQuery, Code, Config, Dataform as Settings};
use crate::error::{Error, Kind, Result};
use google_cloud_auth::credentials::{Builder as CredentialsBuilder, Credentials, anonymous};
use google_cloud_dataform_v1::client::Dataform;
use google_cloud_dataform_v1::model::compilation_result::Source;
use google_cloud_dataform_v1::model::workflow_invocation::{CompilationSource, State};
use google_cloud_dataform_v1::model::workflow_invocation_action::Action as Details;
use google_cloud_dataform_v1::model::{
    CodeCompilationConfig, CompilationResult, InvocationConfig, WorkflowInvocation, WorkflowInvocationAction,
};
use google_cloud_gax::options::RequestOptionsBuilder;
use google_cloud_gax::paginator::ItemPaginator;
use google_cloud_gax::retry_policy::NeverRetry;
use std::time::Duration;
use tokio::time::Instant;

/// Google's endpoint unless the configuration has another.
const ENDPOINT: &str = "https://dataform.googleapis.com";
/// Compilation variable that carries the cut.
const CUT: &str = "huella_cut";
/// Compilation variable that tells this attempt at a compilation from every other.
const ATTEMPT: &str = "huella_attempt";
/// Compilation variable with the oldest age of a cut that the project lets pass.
const MAX_AGE: &str = "huella_max_age_seconds";
/// A creation without an answer is looked for this many times as long as its answer was waited for: a compilation of a large repository
/// takes minutes, and the service goes on with it though nobody waits.
const LOOKED_FOR: u32 = 5;
/// First and longest pause between two looks for it.
const LOOK_FIRST: Duration = Duration::from_millis(250);
const LOOK_LONGEST: Duration = Duration::from_secs(10);
/// Compilations or invocations that are looked through for one of ours, in the order that the service lists them in.
const LOOKED_THROUGH_MAX: usize = 1_000;

/// A repository.
pub(super) struct Repository<'a> {
    client: Dataform,
    settings: &'a Settings,
    bigquery: Option<&'a BigQuery>,
}

/// Why there is no answer to a creation.
enum Unanswered {
    /// It was not made.
    Refused(Error),
    /// It may have been made, or may still be.
    Unknown(Error),
}

/// A compilation that has no errors.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    /// Resource name.
    pub(super) name: String,
    /// The commit that was compiled.
    pub(super) commit: String,
}

/// What became of asking for an invocation.
pub(super) enum Invoked {
    /// Its resource name.
    Started(String),
    /// There is none, and there will be none.
    Refused(Error),
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
    /// The BigQuery job that ran it, if one began.
    pub(super) job: String,
}

impl Action {
    pub(super) fn has_failed(&self) -> bool {
        self.state == "FAILED"
    }
}

impl<'a> Repository<'a> {
    /// Opens it; a plain `http://` endpoint (an emulator) is asked without credentials.
    pub(super) async fn open(config: &'a Config, settings: &'a Settings) -> Result<Self> {
        let endpoint = settings.endpoint.as_deref().unwrap_or(ENDPOINT);
        // Google's crates and ours speak TLS with the same provider; a second installation changes nothing.
        let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let credentials = credentials(endpoint)?;
        let client = Dataform::builder().with_endpoint(endpoint).with_credentials(credentials).build().await;
        let client = client.map_err(|e| Error::config(format!("dataform.endpoint = {endpoint:?} cannot be used")).with_source(e))?;
        Ok(Self { client, settings, bigquery: config.bigquery.as_ref() })
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
        let attempt = format!("{:016x}", random());
        config.vars.insert(CUT.to_owned(), cut.to_owned());
        config.vars.insert(ATTEMPT.to_owned(), attempt.clone());
        config.vars.insert(MAX_AGE.to_owned(), self.settings.max_age.as_secs().to_string());
        // What a release configuration says for itself stays: it is nearer to the code.
        if let Some(bigquery) = self.bigquery {
            let fill = |setting: &mut String, ours: &str| {
                if setting.is_empty() {
                    ours.clone_into(setting);
                }
            };
            fill(&mut config.default_database, &bigquery.project);
            fill(&mut config.default_location, &bigquery.location);
        }
        let wanted = CompilationResult::new().set_source(Source::GitCommitish(commitish)).set_code_compilation_config(config);
        let creation = self.client.create_compilation_result().set_parent(&self.settings.repository).set_compilation_result(wanted);
        let doing = "compiling the Dataform repository";
        let compiled = match self.create(doing, creation.with_retry_policy(NeverRetry).send()).await {
            Ok(compiled) => compiled,
            Err(Unanswered::Refused(error)) => return Err(error),
            Err(Unanswered::Unknown(error)) => {
                tracing::warn!(error = %error.full(), "no answer from Dataform, looking whether the compilation is there");
                self.look(Instant::now() + self.looked_for(), async || self.compilation_of(&attempt).await).await?.ok_or(error)?
            }
        };
        if !compiled.compilation_errors.is_empty() {
            let lines: Vec<String> = compiled.compilation_errors.iter().map(|e| format!("{}: {}", e.path, e.message)).collect();
            return Err(Error::config(format!("the Dataform repository does not compile:\n{}", lines.join("\n"))));
        }
        Ok(Compiled { name: compiled.name, commit: compiled.resolved_git_commit_sha })
    }

    /// The compilation of an attempt, if it has been made.
    async fn compilation_of(&self, attempt: &str) -> Result<Option<CompilationResult>> {
        let list = self.client.list_compilation_results().set_parent(&self.settings.repository).set_order_by("create_time desc");
        let mut all = list.by_item();
        for _ in 0..LOOKED_THROUGH_MAX {
            let Some(next) = all.next().await else { return Ok(None) };
            let next = next.map_err(|e| failed("listing the repository's compilations", e))?;
            let label = next.code_compilation_config.as_ref().and_then(|config| config.vars.get(ATTEMPT));
            if label.is_some_and(|label| label == attempt) {
                return Ok(Some(next));
            }
        }
        Ok(None)
    }

    /// The invocation of a compilation, looked for until `end`: one that was asked for may only now be made.
    pub(super) async fn invocation_by(&self, compilation: &str, end: Instant) -> Result<Option<String>> {
        self.look(end, async || self.invocation_of(compilation).await).await
    }

    /// How long a creation that was asked for, and not answered, may still appear.
    pub(super) fn looked_for(&self) -> Duration {
        self.settings.call_timeout * LOOKED_FOR
    }

    /// Asks until something is found, at least once. Trouble while asking is no answer.
    async fn look<T>(&self, end: Instant, find: impl AsyncFn() -> Result<Option<T>>) -> Result<Option<T>> {
        let mut pause = LOOK_FIRST;
        loop {
            match find().await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) if Instant::now() >= end => return Ok(None),
                Err(error) if !error.is_retry() || Instant::now() >= end => return Err(error),
                Ok(None) | Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_LONGEST);
        }
    }

    /// Waits for the answer to a creation, `call_timeout` at most.
    async fn create<T>(
        &self,
        doing: &str,
        sending: impl Future<Output = google_cloud_dataform_v1::Result<T>>,
    ) -> std::result::Result<T, Unanswered> {
        match tokio::time::timeout(self.settings.call_timeout, sending).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_refusal(&error) => Err(Unanswered::Refused(failed(doing, error))),
            Ok(Err(error)) => Err(Unanswered::Unknown(failed(doing, error))),
            Err(_) => {
                let seconds = self.settings.call_timeout.as_secs();
                Err(Unanswered::Unknown(Error::retry(format!("{doing}: no answer within {seconds} s (dataform.call_timeout)"))))
            }
        }
    }

    /// The invocation of a compilation, if there is one already.
    async fn invocation_of(&self, compilation: &str) -> Result<Option<String>> {
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
    ///
    /// # Errors
    /// `Kind::Retry` if the service neither answered nor has such an invocation after a while.
    pub(super) async fn invoke(&self, compilation: &str) -> Result<Invoked> {
        let mut config = InvocationConfig::new().set_included_tags(self.settings.tags.clone());
        if let Some(account) = &self.settings.service_account {
            config = config.set_service_account(account);
        }
        let source = CompilationSource::CompilationResult(compilation.to_owned());
        let wanted = WorkflowInvocation::new().set_compilation_source(source).set_invocation_config(config);
        let creation = self.client.create_workflow_invocation().set_parent(&self.settings.repository).set_workflow_invocation(wanted);
        match self.create("starting the Dataform run", creation.with_retry_policy(NeverRetry).send()).await {
            Ok(invocation) => Ok(Invoked::Started(invocation.name)),
            Err(Unanswered::Refused(error)) => Ok(Invoked::Refused(error)),
            Err(Unanswered::Unknown(error)) => {
                tracing::warn!(error = %error.full(), "no answer from Dataform, looking whether the run has begun");
                let found = self.invocation_by(compilation, Instant::now() + self.looked_for()).await?;
                found
                    .map(Invoked::Started)
                    .ok_or_else(|| error.context("the run was not found either; start again, and it is looked for first"))
            }
        }
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
    let job = match found.action {
        Some(Details::BigqueryAction(details)) => details.job_id,
        _ => String::new(),
    };
    let ms = |seconds: i64, nanos: i32| seconds * 1000 + i64::from(nanos) / 1_000_000;
    let begun = timing.and_then(|t| t.start_time.as_ref()).map(|at| ms(at.seconds(), at.nanos()));
    let ended = timing.and_then(|t| t.end_time.as_ref()).map(|at| ms(at.seconds(), at.nanos()));
    Action {
        target: target.unwrap_or_default(),
        state: found.state.to_string(),
        took_ms: begun.zip(ended).map(|(begun, ended)| ended - begun),
        failure: found.failure_reason,
        job,
    }
}

/// Whether the service said no, or was never asked: then nothing was created. A 408 or a 5xx says nothing of the kind.
fn is_refusal(error: &google_cloud_dataform_v1::Error) -> bool {
    let said_no = error.http_status_code().is_some_and(|status| (400..500).contains(&status) && status != 408);
    said_no || error.is_connect() || error.is_authentication() || error.is_serialization()
}

/// What the service refuses for good is the configuration's fault; everything else may pass.
fn failed(doing: &str, error: google_cloud_dataform_v1::Error) -> Error {
    let kind = match error.http_status_code() {
        Some(400 | 401 | 403 | 404 | 412) => Kind::Config,
        _ => Kind::Retry,
    };
    Error::new(kind, format!("{doing}: {error}"))
}
