use super::*;
use crate::error::Kind;

const LEAST: &str = "[source]\nurl = \"postgresql://u:hush@h/d\"\n[lake]\nurl = \"./lake\"\n";

/// The contract's example, whole.
const WHOLE: &str = r#"
[source]
url = "postgresql://postgres@localhost:5432/postgres?sslmode=verify-full"
tls_ca = "prod-ca.crt"
slot = "huella"
publication = "huella"

[lake]
url = "gs://bucket/prefix"

[batch]
max_age = "60s"
max_bytes = "32MiB"
memory = "128MiB"
heartbeat = "60s"

[snapshot]
workers = 2
initial = true

[http]
listen = "0.0.0.0:8080"

[[table]]
name = "public.donaciones"
exclude = ["comprobante"]
hash = ["identificacion"]

[[table]]
name = "public.proveedores"
mode = "snapshot"

[bigquery]
project = "p"
location = "us-central1"
raw_dataset = "raw"
silver_dataset = "silver"

[dataform]
repository = "projects/p/locations/us-central1/repositories/r"
git_commitish = "main"
tags = ["silver", "gold"]
service_account = "runner@p.iam.gserviceaccount.com"
"#;

const KEY: (&str, &str) = ("HUELLA_HASH_KEY", "0123456789abcdef");

fn parse(text: &str, env: &[(&str, &str)]) -> Result<Config> {
    let env: Vec<_> = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Config::parse(Some((Path::new("huella.toml"), text)), &env)
}

/// The least configuration with more behind it.
fn with(more: &str) -> Result<Config> {
    parse(&format!("{LEAST}{more}"), &[KEY])
}

fn with_env(env: &[(&str, &str)]) -> Result<Config> {
    parse(LEAST, env)
}

fn refusal(result: Result<Config>) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind(), Kind::Config);
    error.full()
}

fn table(more: &str) -> Result<Config> {
    with(&format!("[[table]]\nname = \"public.a\"\n{more}"))
}

#[test]
fn every_key_of_the_contract_is_read() {
    let config = parse(WHOLE, &[KEY]).unwrap();
    assert_eq!(config.source.url.expose(), "postgresql://postgres@localhost:5432/postgres?sslmode=verify-full");
    assert_eq!(config.source.tls_ca, Some(PathBuf::from("prod-ca.crt")));
    assert_eq!((config.source.slot.as_str(), config.source.publication.as_str()), ("huella", "huella"));
    assert_eq!(config.lake.url, "gs://bucket/prefix");
    assert_eq!((config.snapshot.workers, config.snapshot.initial), (2, true));
    let tables = config.tables.as_deref().unwrap();
    assert_eq!(tables[0].name, TableName::new("public", "donaciones"));
    assert_eq!((tables[0].mode, tables[1].mode), (Mode::Stream, Mode::Snapshot));
    assert_eq!((&tables[0].exclude[..], &tables[0].hash[..]), (&["comprobante".to_owned()][..], &["identificacion".to_owned()][..]));
    let bigquery = config.bigquery.as_ref().unwrap();
    assert_eq!((bigquery.project.as_str(), bigquery.location.as_str()), ("p", "us-central1"));
    assert_eq!((bigquery.raw_dataset.as_str(), bigquery.silver_dataset.as_str()), ("raw", "silver"));
    let dataform = config.dataform.as_ref().unwrap();
    assert_eq!(dataform.code, Code::GitCommitish("main".into()));
    assert_eq!((dataform.tags.len(), dataform.service_account.as_deref()), (2, Some("runner@p.iam.gserviceaccount.com")));
    assert_eq!(config.hash_key.as_ref().unwrap().expose(), KEY.1);
    assert!(config.table(&TableName::new("public", "proveedores")).is_some() && config.table(&TableName::new("public", "x")).is_none());
}

#[test]
fn defaults_are_the_contracts() {
    let config = with_env(&[]).unwrap();
    assert_eq!((config.source.slot.as_str(), config.source.publication.as_str(), config.source.tls_ca), ("huella", "huella", None));
    assert_eq!((config.batch.max_age, config.batch.heartbeat), (Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!((config.batch.max_bytes, config.batch.memory), (32 << 20, 128 << 20));
    assert!(config.snapshot.initial && config.snapshot.workers >= 1);
    assert_eq!((config.http.listen, config.source.new_tables), (Some("127.0.0.1:8080".parse().unwrap()), NewTables::Add));
    assert!(config.tables.is_none() && config.bigquery.is_none() && config.dataform.is_none() && config.hash_key.is_none());
}

#[test]
fn the_environment_alone_is_enough() {
    let env = [
        ("HUELLA_SOURCE_URL", "postgres://h/d"),
        ("HUELLA_LAKE_URL", "gs://b"),
        ("HUELLA_SNAPSHOT_WORKERS", "3"),
        ("HUELLA_SNAPSHOT_INITIAL", "false"),
        ("HUELLA_TABLE", r#"[{name = "public.a", exclude = ["x"]}, {name = "public.b", mode = "snapshot"}]"#),
        ("HUELLA_DATAFORM_REPOSITORY", "projects/p/locations/l/repositories/r"),
        ("HUELLA_DATAFORM_RELEASE_CONFIG", "prod"),
        ("HUELLA_DATAFORM_TAGS", "silver, gold"),
        ("HUELLA_HTTP_LISTEN", ""),
    ];
    let config = Config::parse(None, &env.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap();
    assert_eq!((config.snapshot.workers, config.snapshot.initial, config.http.listen), (3, false, None));
    assert_eq!(config.tables.unwrap()[1].mode, Mode::Snapshot);
    let dataform = config.dataform.unwrap();
    assert_eq!((dataform.max_age.as_secs(), dataform.call_timeout.as_secs()), (172_800, 60));
    assert_eq!((dataform.code, &dataform.tags[..]), (Code::ReleaseConfig("prod".into()), &["silver".to_owned(), "gold".to_owned()][..]));
}

#[test]
fn the_environment_wins() {
    let env = [("HUELLA_SOURCE_SLOT", "other"), ("HUELLA_BATCH_MAX_AGE", "5s"), ("HUELLA_TABLE", r#"[{name = "public.z"}]"#), KEY];
    let config = parse(WHOLE, &env).unwrap();
    assert_eq!((config.source.slot.as_str(), config.batch.max_age), ("other", Duration::from_secs(5)));
    assert_eq!(config.tables.unwrap().iter().map(|table| table.name.to_string()).collect::<Vec<_>>(), ["public.z"]);
}

#[test]
fn port_changes_the_port_and_opens_nothing_that_is_off() {
    assert_eq!(with_env(&[("PORT", "9000")]).unwrap().http.listen, Some("0.0.0.0:9000".parse().unwrap()));
    assert_eq!(with_env(&[("PORT", "9000"), ("HUELLA_HTTP_LISTEN", "[::1]:1")]).unwrap().http.listen, Some("[::1]:9000".parse().unwrap()));
    assert_eq!(with_env(&[("PORT", "9000"), ("HUELLA_HTTP_LISTEN", "")]).unwrap().http.listen, None);
    assert!(refusal(with_env(&[("PORT", "no")])).contains("PORT = \"no\": must be a port"));
}

#[test]
fn limits_are_inclusive() {
    for more in [
        "[batch]\nmax_age = \"100ms\"\nheartbeat = \"1s\"\nmax_bytes = 1024\nmemory = \"8MiB\"",
        "[batch]\nmax_age = \"24h\"\nheartbeat = \"1h\"\nmax_bytes = \"1GiB\"\nmemory = \"64GiB\"",
        "[batch]\nmax_bytes = \"64MiB\"",
        "[snapshot]\nworkers = 64",
        &format!("[[table]]\nname = \"{0}.{0}\"", "n".repeat(63)),
        "[[table]]\nname = \"public.Mis Donaciones.2\"",
    ] {
        with(more).unwrap_or_else(|error| panic!("{more}: {}", error.full()));
    }
    assert_eq!(with_env(&[("HUELLA_SOURCE_SLOT", &"s".repeat(63))]).unwrap().source.slot.len(), 63);
}

#[test]
fn each_rule_is_checked_and_said() {
    let long = "s".repeat(64);
    for (variable, value, rule) in [
        ("HUELLA_SOURCE_URL", "mysql://h/d", "must be postgresql://"),
        ("HUELLA_SOURCE_URL", "postgresql://h/d d", "must be postgresql://"),
        ("HUELLA_SOURCE_TLS_CA", "", "must be a file's path"),
        ("HUELLA_SOURCE_SLOT", "Huella", "1 to 63 of a-z, 0-9 and _"),
        ("HUELLA_SOURCE_SLOT", "", "1 to 63 of a-z, 0-9 and _"),
        ("HUELLA_SOURCE_SLOT", &long, "1 to 63 of a-z, 0-9 and _"),
        ("HUELLA_SOURCE_PUBLICATION", &long, "1 to 63 bytes"),
        ("HUELLA_LAKE_URL", "s3://bucket", "must be gs://bucket/prefix"),
        ("HUELLA_LAKE_URL", "gs://", "must be gs://bucket/prefix"),
        ("HUELLA_LAKE_URL", "lake", "must be gs://bucket/prefix"),
        ("HUELLA_LAKE_URL", "file://lake", "must be gs://bucket/prefix"),
        ("HUELLA_BATCH_MAX_AGE", "60", "a time with its unit, 100ms to 1day"),
        ("HUELLA_BATCH_MAX_AGE", "99ms", "100ms to 1day"),
        ("HUELLA_BATCH_MAX_AGE", "25h", "100ms to 1day"),
        ("HUELLA_BATCH_HEARTBEAT", "999ms", "1s to 1h"),
        ("HUELLA_BATCH_HEARTBEAT", "61m", "1s to 1h"),
        ("HUELLA_BATCH_MAX_BYTES", "many", "a size such as \"32MiB\""),
        ("HUELLA_BATCH_MAX_BYTES", "1023", "1.0 KiB to 1.0 GiB"),
        ("HUELLA_BATCH_MEMORY", "7MiB", "8.0 MiB to 64.0 GiB"),
        ("HUELLA_BATCH_MEMORY", "-1", "8.0 MiB to 64.0 GiB"),
        ("HUELLA_BATCH_MEMORY", "63MiB", "at least twice batch.max_bytes"),
        ("HUELLA_BATCH_MAX_BYTES", "65MiB", "at least twice batch.max_bytes"),
        ("HUELLA_BATCH_MAX_BYTES", "1073741825", "1.0 KiB to 1.0 GiB"),
        ("HUELLA_SOURCE_NEW_TABLES", "Add", "must be \"add\" or \"ignore\""),
        ("HUELLA_DATAFORM_ENDPOINT", "http://dataform.example.org", "must be an https:// URL"),
        ("HUELLA_DATAFORM_ENDPOINT", "http://localhost.example.org:80", "must be an https:// URL"),
        ("HUELLA_SNAPSHOT_WORKERS", "0", "a whole number, 1 to 64"),
        ("HUELLA_SNAPSHOT_WORKERS", "65", "a whole number, 1 to 64"),
        ("HUELLA_SNAPSHOT_INITIAL", "yes", "true or false"),
        ("HUELLA_HTTP_LISTEN", "8080", "an address and a port"),
        ("HUELLA_HTTP_LISTEN", "localhost:8080", "an address and a port"),
        ("HUELLA_BIGQUERY_LOCATION", "us/central", "must be a location"),
        ("HUELLA_BIGQUERY_RAW_DATASET", "raw-data", "letters, digits and _"),
        ("HUELLA_DATAFORM_REPOSITORY", "projects/p/repositories/r", "must be projects/P/locations/L/repositories/R"),
        ("HUELLA_DATAFORM_TAGS", "a,a", "a list of different tags"),
        ("HUELLA_DATAFORM_TAGS", "a,,b", "a list of different tags"),
        ("HUELLA_DATAFORM_SERVICE_ACCOUNT", "runner", "a service account's address"),
        ("HUELLA_TABLE", "public.a", "is not a TOML list"),
    ] {
        let text = refusal(with_env(&[(variable, value)]));
        assert!(text.lines().any(|line| line.contains(variable) && line.contains(rule)), "{variable} = {value}:\n{text}");
        let shown = matches!(variable, "HUELLA_TABLE" | "HUELLA_SOURCE_URL") || text.contains(&format!("{variable} = {value:?}: "));
        assert!(shown, "{variable} = {value}:\n{text}");
    }
}

#[test]
fn rules_of_tables_are_checked() {
    let long = format!("name = \"public.{}\"", "t".repeat(64));
    for (result, rule) in [
        (with("[[table]]\nmode = \"stream\""), "table[1].name: is required; must be schema.table"),
        (with("[[table]]\nname = \"donaciones\""), "table[1].name = \"donaciones\": must be schema.table"),
        (with("[[table]]\nname = \"public.\""), "must be schema.table"),
        (with(&format!("[[table]]\n{long}")), "must be schema.table"),
        (with("[[table]]\nname = 5"), "table[1].name = 5: must be schema.table"),
        (with("[[table]]\nname = \"pg_catalog.pg_class\""), "its own catalogues"),
        (with("[[table]]\nname = \"information_schema.tables\""), "its own catalogues"),
        (table("[[table]]\nname = \"public.a\""), "table[2].name = \"public.a\": is there already (block 1)"),
        (table("mode = \"full\""), r#"table[1].mode = "full": must be "stream" or "snapshot""#),
        (table("exclude = \"x\""), "table[1].exclude = \"x\": must be a list of different columns' names"),
        (table("exclude = [\"x\", \"x\"]"), "a list of different columns' names"),
        (table("exclude = [\"\"]"), "a list of different columns' names"),
        (table("hash = [1]"), "a list of different columns' names"),
        (table("exclude = [\"x\", \"y\"]\nhash = [\"y\"]"), "column \"y\" is also in exclude"),
        (table("exclude_at_source = \"true\""), "table[1].exclude_at_source = \"true\": must be true or false"),
        (table("exclude_at_source = true"), "there is no exclude"),
        (table("mode = \"snapshot\"\nexclude = [\"x\"]\nexclude_at_source = true"), "a property of the publication"),
        (table("colour = 1"), "table[1].colour: there is no such key; there are name, mode, exclude, exclude_at_source, hash"),
        (parse(&format!("table = []\n{LEAST}"), &[]), "table: the list is empty"),
        (parse(&format!("table = [1]\n{LEAST}"), &[]), "table[1]: is not a table"),
        (with("[table]\nname = \"public.a\""), "write [[table]]"),
    ] {
        let text = refusal(result);
        assert!(text.contains(rule), "wanted {rule}:\n{text}");
    }
    let ok = table("exclude = [\"x\"]\nexclude_at_source = true").unwrap().tables.unwrap();
    assert!(ok[0].exclude_at_source);
}

#[test]
fn a_hash_needs_a_strong_key() {
    let text = format!("{LEAST}[[table]]\nname = \"public.a\"\nhash = [\"x\"]");
    assert!(parse(&text, &[KEY]).is_ok());
    for env in [&[][..], &[("HUELLA_HASH_KEY", "")][..]] {
        assert!(refusal(parse(&text, env)).contains("set HUELLA_HASH_KEY"));
    }
    let short = refusal(parse(&text, &[("HUELLA_HASH_KEY", "hush-hush")]));
    assert!(short.contains("HUELLA_HASH_KEY: must have at least 16 bytes") && !short.contains("hush"), "{short}");
}

#[test]
fn sections_that_are_there_need_their_keys() {
    let text = refusal(with("[bigquery]\n[dataform]"));
    for rule in [
        "bigquery.project: is required (or HUELLA_BIGQUERY_PROJECT",
        "bigquery.location",
        "dataform.repository",
        "one of git_commitish and release_config",
    ] {
        assert!(text.contains(rule), "wanted {rule}:\n{text}");
    }
    let both = "[dataform]\nrepository = \"projects/p/locations/l/repositories/r\"\ngit_commitish = \"a\"\nrelease_config = \"b\"";
    assert!(refusal(with(both)).contains("and not both"));
    let text = refusal(parse("", &[]));
    assert!(text.contains("source.url: is required (or HUELLA_SOURCE_URL") && text.contains("lake.url: is required"), "{text}");
}

#[test]
fn unknown_keys_are_errors_and_their_values_are_not_shown() {
    let more = "[batch]\nmax_rows = \"hush\"\n[sauce]\nurl = \"hush\"";
    let text =
        refusal(parse(&format!("colour = \"hush\"\n{LEAST}{more}"), &[("HUELLA_SOURCE_PASSWORDS", "hush"), ("HUELLA_TABLE_NAME", "hush")]));
    for rule in [
        "colour: there is no such key outside the sections",
        "batch.max_rows: there is no such key; there are max_age, max_bytes, memory, heartbeat",
        "[sauce]: there is no such section; there are source, lake",
        "HUELLA_SOURCE_PASSWORDS: there is no such key; there are url, password, tls_ca, slot, publication",
        "HUELLA_TABLE_NAME: tables are set together",
    ] {
        assert!(text.contains(rule), "wanted {rule}:\n{text}");
    }
    assert!(!text.contains("hush"), "{text}");
}

#[test]
fn other_names_of_the_environment_are_let_be() {
    let env = [("HUELLA_LOG", "x"), ("HUELLA_LOG_FORMAT", "x"), ("HUELLA_CONFIG", "x"), ("HUELLA_FAULTS", "x"), ("HUELLA_FAILPOINT", "x")];
    assert!(with_env(&env).is_ok());
    assert!(with_env(&[("HUELLA_IMAGE", "x"), ("PATH", "/bin"), ("SOURCE_URL", "x")]).is_ok());
}

#[test]
fn all_problems_are_said_at_once() {
    let text =
        refusal(parse("[source]\nslot = \"A\"\n[batch]\nmax_age = 60\nheartbeat = \"0s\"\nx = 1", &[("HUELLA_LAKE_URL", "ftp://x")]));
    assert!(text.starts_with("configuration refused (huella.toml):\n"), "{text}");
    for key in [
        "source.url",
        "source.slot = \"A\"",
        "batch.max_age = 60:",
        "batch.heartbeat = \"0s\"",
        "batch.x:",
        "HUELLA_LAKE_URL = \"ftp://x\"",
    ] {
        assert!(text.contains(key), "wanted {key}:\n{text}");
    }
    assert_eq!(text.lines().count(), 7, "{text}");
}

#[test]
fn no_password_is_ever_shown() {
    let url = "postgresql://u:hush@h/d";
    let wrong = [
        parse(&format!("[source]\nurl = \"mysql://u:hu/hush@h/d\"\n[lake]\nurl = \"{url}\""), &[]),
        parse(&format!("[source]\nurl = \"{url} x\"\ntls_ca = [\"{url}\"]\nslot = \"{url}\""), &[]),
        parse(&format!("[source]\nurl = \"{url}"), &[]),
        parse(&format!("[source]\nurl = {url}"), &[]),
        parse(&format!("[source]\nurl = \"{url}\"\nurl = \"{url}\""), &[]),
        with_env(&[("HUELLA_SOURCE_URL", "host=h password=hush"), ("HUELLA_TABLE", url)]),
    ];
    for result in wrong {
        let error = result.expect_err("must be refused");
        assert!(!error.full().contains("hush") && !format!("{error:?}").contains("hush"), "{error:?}");
    }
    let config = with_env(&[KEY]).unwrap();
    assert!(!format!("{config:?}").contains("hush") && !format!("{config:?}").contains(KEY.1));
    assert_eq!(config.source.shown_url(), "postgresql://u:***@h/d");
}

/// A password where a URL should be is still a password.
#[test]
fn a_source_url_is_in_no_message_whatever_it_is() {
    for url in ["hush", "postgres//hush", "hush@h", "postgresql://h/d hush", "https://hush"] {
        let text = refusal(with_env(&[("HUELLA_SOURCE_URL", url)]));
        assert!(text.contains("HUELLA_SOURCE_URL = (not shown): must be postgresql://") && !text.contains("hush"), "{text}");
    }
}

#[test]
fn a_password_of_its_own_goes_into_the_url_whatever_it_holds() {
    for (url, password) in [("postgresql://u@h/d", "a&b=c %?ñ"), ("postgresql://u@h/d?sslmode=disable", "x")] {
        let config = parse(&format!("{LEAST}[batch]\n"), &[("HUELLA_SOURCE_URL", url), ("HUELLA_SOURCE_PASSWORD", password)]).unwrap();
        let shown = config.source.shown_url();
        assert!(shown.starts_with(url) && shown.ends_with("password=***"), "{shown}");
        let encoded = config.source.url.expose().rsplit_once("password=").unwrap().1.to_owned();
        let bytes: Vec<u8> = encoded.split('%').skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), password);
    }
    let text = refusal(with_env(&[("HUELLA_SOURCE_PASSWORD", "hash-hush")]));
    assert!(text.contains("source.password: source.url has a password too") && !text.contains("hush"), "{text}");
}

#[test]
fn a_file_with_a_password_that_others_may_read_is_known() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let plain = LEAST.replace(":hush", "");
    for (text, mode, exposed) in [
        (LEAST, 0o644, true),
        (LEAST, 0o640, true),
        (LEAST, 0o600, false),
        (plain.as_str(), 0o644, false),
        (&plain.replace("[lake]", "password = \"hush\"\n[lake]"), 0o604, true),
    ] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        assert_eq!(config.exposed_file.as_deref(), exposed.then_some(path.as_path()), "{mode:o}");
        // One that the environment gives is not in the file.
        let env = [("HUELLA_SOURCE_URL".to_owned(), "postgresql://u:other@h/d".to_owned())];
        let config = Config::load(Some(&path), env).ok();
        assert!(text.contains("password =") || config.unwrap().exposed_file.is_none());
    }
}

#[test]
fn only_this_machine_is_spoken_to_without_tls() {
    let dataform = "[dataform]\nrepository = \"projects/p/locations/l/repositories/r\"\ngit_commitish = \"a\"\nendpoint = ";
    for url in ["http://127.0.0.1:9", "http://[::1]:9/x", "http://localhost:9", "https://dataform.example.org"] {
        assert!(with(&format!("{dataform}\"{url}\"")).is_ok(), "{url}");
    }
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let text = refusal(parse("[source]\nslot = \"a\"\nurl = \"x", &[]));
    assert!(text.starts_with("huella.toml is not TOML: line 3: "), "{text}");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let load = || Config::load(Some(&path), std::iter::empty());
    assert!(refusal(load()).contains("cannot read"));
    std::fs::write(&path, LEAST).unwrap();
    assert_eq!(load().unwrap().lake.url, "./lake");
    std::fs::write(&path, [0xff]).unwrap();
    assert!(refusal(load()).contains("cannot read"));
}

#[test]
fn the_readmes_configuration_is_valid() {
    let readme = include_str!("../../README.md");
    let toml = readme.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("a toml block").0;
    let config = parse(toml, &[KEY]).unwrap_or_else(|error| panic!("{}", error.full()));
    assert_eq!(config.tables.unwrap().len(), 3);
}
