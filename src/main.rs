//! Start, run, map the error to an exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)] // `stdout` and the log escape what others wrote

use huella::cli::{self, Cli, Command, Dataform, Run, Snapshot};
use huella::config::{self, Config};
use huella::error::{Error, Kind, Result};
use huella::observe::logs;
use huella::replicate::{self, Mode};
use huella::wait;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;

/// Cloud Run kills ten seconds after SIGTERM; leaving earlier than committed is safe.
const LEAVE_WITHIN: Duration = Duration::from_secs(8);

/// A main loop that has not even noticed that its time is up is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = cli::parse();
    if let Err(error) = logs::init(cli.log_format, std::env::var("HUELLA_LOG").ok().as_deref()) {
        huella::stdout::complain(&error.lines());
        return ExitCode::from(error.kind().exit_code());
    }
    match std::panic::catch_unwind(|| start(cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            for line in error.lines() {
                match error.kind() {
                    Kind::Found => tracing::warn!("{line}"),
                    _ => tracing::error!("{line}"),
                }
            }
            ExitCode::from(error.kind().exit_code())
        }
        Err(_) => ExitCode::from(Kind::Bug.exit_code()), // the hook has logged it
    }
}

fn start(cli: Cli) -> Result<()> {
    bound_allocator();
    if let Some(limit) = limit(&cli.command) {
        wait::give_up_after(limit);
    }
    leave_no_core();
    let mut config = Config::load(cli.config.as_deref(), config::environment()?)?;
    config.rehash = matches!(&cli.command, Command::Run(Run { rehash: true, .. }) | Command::Snapshot(Snapshot { rehash: true, .. }));
    if let Some(file) = config.exposed_file.as_deref().filter(|_| !matches!(cli.command, Command::Check(_))) {
        tracing::warn!(file = %file.display(), "the configuration holds a password, and others may read it: chmod 0600 it");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::retry("starting the runtime").with_source(e))?;
    let ended = runtime.block_on(command(cli.command, config));
    // A blocking task that hangs (a dead file system) must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended
}

/// How long a command that only reads waits for an answer. `run` and `daily` count progress instead.
fn limit(command: &Command) -> Option<Duration> {
    match command {
        Command::Status(asked) => Some(asked.patience.timeout),
        Command::Files(asked) => Some(asked.patience.timeout),
        Command::Verify(asked) => Some(asked.patience.timeout),
        _ => None,
    }
}

async fn command(command: Command, config: Config) -> Result<()> {
    match command {
        Command::Run(asked) => {
            let timeout = asked.until_caught_up.then_some(asked.timeout);
            let mode = Mode { until_caught_up: asked.until_caught_up, resnapshot: asked.resnapshot, take_over: asked.take_over, timeout };
            stoppable(|stop| replicate::run(config, mode, stop)).await
        }
        Command::Snapshot(asked) => stoppable(|stop| replicate::snapshot(config, &asked.tables, stop)).await,
        Command::Check(asked) => huella::check::command::run(&config, asked.json, asked.timeout).await,
        Command::Status(asked) => huella::status::run(&config, asked.json, asked.max_lag).await,
        Command::Files(asked) => huella::files::run(&config, &asked.tables, asked.json, asked.all_versions).await,
        Command::Verify(asked) => huella::verify::run(&config, &asked.tables, asked.values || huella::stdout::is_terminal()).await,
        Command::Compact(asked) => {
            wait::while_it_moves(Some(asked.timeout), "huella compact", huella::compact::run(&config, asked.before)).await
        }
        Command::Forget(asked) => {
            let asked = huella::forget::Asked { table: asked.table, key: asked.key, hashed: asked.hashed };
            huella::forget::run(&config, &asked).await
        }
        Command::Publish(asked) => wait::while_it_moves(Some(asked.timeout), "huella publish", huella::publish::run(&config)).await,
        Command::Daily(asked) => stoppable(|stop| huella::daily::run(config, asked.timeout, stop)).await,
        Command::Dataform { command: Dataform::Run } => {
            let config = &config;
            stoppable(|stop| async move { huella::dataform::run(config, stop).await }).await
        }
        Command::Dataform { command: Dataform::Generate(asked) } => huella::dataform::generate(&config, &asked.out).await,
        Command::Teardown(_) => huella::teardown::run(&config).await,
    }
}

/// Runs something that can be asked to stop, which SIGTERM and SIGINT do.
async fn stoppable<F: Future<Output = Result<()>>>(begin: impl FnOnce(watch::Receiver<bool>) -> F) -> Result<()> {
    let (ask, mut stop) = watch::channel(false);
    let running = begin(ask.subscribe());
    listen(ask)?;
    tokio::pin!(running);
    tokio::select! {
        biased;
        ended = &mut running => return ended,
        // The sender lives until the process ends.
        _ = stop.wait_for(|asked| *asked) => {}
    }
    tokio::time::timeout(LEAVE_WITHIN, running).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> Error {
    Error::retry("the lake or the source did not answer in time to commit; what was not committed is sent again at the next start")
}

/// Waits for SIGTERM or SIGINT on a thread of its own: a main loop that is busy, or stuck, hears nothing. One that does not end in time
/// is ended.
fn listen(ask: watch::Sender<bool>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let broken = |e| Error::retry("listening for signals").with_source(e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let (mut term, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate()).map_err(broken)?, signal(SignalKind::interrupt()).map_err(broken)?)
    };
    let listening = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        tracing::info!("asked to stop: committing what is complete");
        ask.send_replace(true);
        std::thread::sleep(LEAVE_WITHIN + STUCK_AFTER);
        tracing::error!("{}", late().full());
        std::process::exit(late().kind().exit_code().into());
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listening).map(drop).map_err(broken)
}

/// A core dump would hold passwords, the hash key and rows. Best effort: it only ever lowers a limit.
fn leave_no_core() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "core dumps could not be turned off");
    }
}

/// Keeps glibc's allocator from holding on to freed batches: few arenas, and large blocks returned to the system at once.
fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before other threads exist; only sets parameters.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1024 * 1024);
    }
}
