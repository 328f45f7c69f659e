//! What huella says, to whom, and how secrets come to it.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod hidden;
mod lake_reader;
mod private_server;
mod world;

use hidden::{KEY, MARK, ends, output, shows};
use huella::stdout::is_unsafe;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use world::World;

const UNTIL: [&str; 2] = ["run", "--until-caught-up"];

/// Names at the source are others' text: no command prints them so that they begin a line, move the cursor or turn text around.
#[tokio::test(flavor = "multi_thread")]
async fn names_at_the_source_forge_nothing_on_a_terminal() {
    let w = World::new().await;
    for name in ["x\nERROR forged: watermark lost", "\u{1b}[31mred\u{9b}2J", "a\u{202e}dorp\u{2066}", "tab\tand\rreturn"] {
        let (table, column) = (format!("\"{name}\""), format!("\"c{name}\""));
        w.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY, {column} text); INSERT INTO {table} VALUES (1, 'a'); CREATE TABLE \"no{name}\" (n int)")).await;
    }
    let env = [("HUELLA_BIGQUERY_PROJECT", "p"), ("HUELLA_BIGQUERY_LOCATION", "EU"), ("HUELLA_LOG", "debug")];
    let mut said = vec![
        output(&w, &["check"], &env),
        output(&w, &UNTIL, &env),
        output(&w, &["--log-format", "text", "run", "--until-caught-up"], &env),
    ];
    // Differences, and a table that changed.
    w.sql("ALTER TABLE \"x\nERROR forged: watermark lost\" ADD \"new\n\u{202e}\" text").await;
    said.push(output(&w, &UNTIL, &env));
    for command in [
        vec!["check"],
        vec!["check", "--json"],
        vec!["status"],
        vec!["status", "--json"],
        vec!["verify"],
        vec!["files"],
        vec!["files", "--json"],
        vec!["files", "public.no\u{1b}[31msuch\ntable"],
        vec!["compact", "--before", "2999-01-01"],
        vec!["publish"],
        vec!["dataform", "generate", "--out", "includes"],
        vec!["snapshot", "public.a\u{202e}dorp\u{2066}"],
        vec!["daily"],
    ] {
        said.push(output(&w, &command, &env));
    }
    w.sql("DROP TABLE \"\u{1b}[31mred\u{9b}2J\"").await;
    said.extend([output(&w, &["verify"], &env), output(&w, &UNTIL, &env), output(&w, &["status"], &env)]);
    for (_, text) in &said {
        assert!(!text.contains(|c| c != '\n' && is_unsafe(c)), "{text:?}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("ERROR forged")), "{text}");
    }
    let all: String = said.into_iter().map(|(_, text)| text).collect();
    assert!(all.contains("x\\nERROR forged") && all.contains("\\u{202e}dorp"), "they are named all the same");
}

/// The output of a job is a log, which more people may read than the table.
#[tokio::test(flavor = "multi_thread")]
async fn verify_shows_cells_only_where_they_are_asked_for() {
    let w = World::new().await;
    w.sql("CREATE TABLE a (id text PRIMARY KEY, v text); CREATE TABLE b (v text); ALTER TABLE b REPLICA IDENTITY FULL").await;
    let env = [("HUELLA_TABLE", "[{name = 'public.a'}, {name = 'public.b'}]")];
    w.sql(&format!("INSERT INTO a SELECT '{MARK}' || n, 'x' FROM generate_series(1, 5) n; INSERT INTO b VALUES ('{MARK}')")).await;
    ends(&w, &UNTIL, &env, 0);
    w.sql(&format!(
        "ALTER PUBLICATION huella SET (publish = 'truncate'); UPDATE a SET v = '{MARK}' WHERE id < '{MARK}3'; DELETE FROM a WHERE id = '{MARK}4'; \
         INSERT INTO a VALUES ('{MARK}9'); INSERT INTO b VALUES ('{MARK}2')"
    ))
    .await;
    let said = ends(&w, &["verify"], &env, 7);
    for part in [
        "public.a: column v differs in 2 rows",
        "2 rows differ, 1 are missing in the lake, 1 are not at the source",
        "--values shows cells",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said) = output(&w, &["verify", "--values"], &env);
    assert!(code == 7 && shows(said.as_bytes()) && said.contains(&format!("missing in the lake: id = \"{MARK}9\"")), "{said}");
}

/// Each with its key, value and rule, in a line of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_configuration_is_told_line_by_line() {
    let w = World::new().await;
    let env = [
        ("HUELLA_BATCH_MAX_AGE", "60"),
        ("HUELLA_SOURCE_URL", "hush"),
        ("HUELLA_HASH_KEY", "hush"),
        ("HUELLA_SOURCE_SLOT", "A\nERROR forged"),
    ];
    let told = [
        "configuration refused (the environment):",
        "HUELLA_BATCH_MAX_AGE = \"60\": must be a time with its unit, 100ms to 1day",
        "HUELLA_SOURCE_URL = (not shown): must be postgresql://user@host:port/database",
        "HUELLA_HASH_KEY: must have at least 16 bytes",
        "HUELLA_SOURCE_SLOT = \"A\\nERROR forged\": must be 1 to 63",
    ];
    let (code, json) = output(&w, &["check"], &env);
    let messages: Vec<String> =
        json.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned()).collect();
    let (text_code, text) = output(&w, &["check", "--log-format", "text"], &env);
    assert_eq!((code, text_code, messages.len(), text.lines().count()), (3, 3, told.len(), told.len()), "{json}\n{text}");
    for line in told {
        assert!(messages.iter().any(|message| message.starts_with(line)), "{line}: {messages:?}");
        assert!(text.lines().any(|said| said.contains(&format!("ERROR {line}"))), "{line}: {text}");
    }
    assert!(!text.contains("hush") && !json.contains("hush"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_from_files_too_and_leave_no_core() {
    let w = World::new().await;
    w.sql("CREATE TABLE a (id int PRIMARY KEY, cedula text)").await;
    let file = |name: &str, text: &str| {
        let path = w.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (url, key, password) = (file("url", &format!("{}\n", w.url())), file("key", &format!("{KEY}\n")), file("password", "p w&d%\n"));
    let env = [
        ("HUELLA_SOURCE_URL", ""),
        ("HUELLA_SOURCE_URL_FILE", url.as_str()),
        ("HUELLA_HASH_KEY_FILE", &key),
        ("HUELLA_SOURCE_PASSWORD_FILE", &password),
        ("HUELLA_TABLE", "[{name = 'public.a', hash = ['cedula']}]"),
    ];
    let run = w.start(&["run"], &env);
    w.sql(&format!("INSERT INTO a VALUES (1, '{MARK}')")).await;
    w.caught_up().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", run.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    run.stop();
    ends(&w, &["verify"], &env, 0);
    let said = ends(&w, &["check"], &[("HUELLA_HASH_KEY_FILE", "/nowhere")], 3);
    assert!(said.contains("must be a readable file that holds HUELLA_HASH_KEY"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_a_password_that_others_may_read_is_named() {
    let w = World::new().await;
    w.sql("CREATE TABLE a (id int PRIMARY KEY)").await;
    let path = w.dir.path().join("huella.toml");
    std::fs::write(&path, format!("[source]\nurl = \"{}\"\n", w.url().replace("postgres@", "postgres:hush@"))).unwrap();
    for (mode, told) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for command in [vec!["check"], vec!["run", "--until-caught-up"]] {
            let output = w.command(&command).env_remove("HUELLA_SOURCE_URL").output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert_eq!(said.contains("others may read it"), told, "{command:?} {said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_are_added_or_stay_out_as_the_configuration_says() {
    let w = World::new().await;
    w.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let ignore = [("HUELLA_SOURCE_NEW_TABLES", "ignore")];
    let said = ends(&w, &["check"], &ignore, 0);
    assert!(said.contains("stay out (source.new_tables = \"ignore\")") && said.contains("public.a"), "{said}");
    let run = w.start(&["run"], &ignore);
    w.caught_up().await;
    w.sql(&format!("CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b VALUES (1, '{MARK}'); INSERT INTO a VALUES (2)")).await;
    w.wait("the new table to be named", || w.log().contains("a new table is left out"));
    // Some looks later it is still out, and was not named again.
    for n in 3..6 {
        w.sql(&format!("INSERT INTO a VALUES ({n}); INSERT INTO b VALUES ({n})")).await;
        w.caught_up().await;
    }
    run.stop();
    assert_eq!(w.log().matches("a new table is left out").count(), 1, "{}", w.log());
    assert_eq!(w.read().tables(), ["public.a"]);
    ends(&w, &["verify"], &ignore, 0);
    let said = ends(&w, &["check"], &ignore, 0);
    assert!(said.contains("public.b: left out: it appeared after the first start"), "{said}");
    // Nor does a lake that has lost all of its tables begin anew with the others, or a new slot.
    ends(&w, &["run", "--until-caught-up", "--resnapshot"], &ignore, 0);
    assert_eq!(w.read().tables(), ["public.a"]);
    hidden::assert_lake_hidden(&w);

    let said = ends(&w, &["check"], &[], 0);
    assert!(said.contains("(source.new_tables = \"add\")"), "{said}");
    ends(&w, &UNTIL, &[], 0);
    assert_eq!(w.read().tables(), ["public.a", "public.b"]);
}
