//! Claims about connection URLs.

use super::*;
use crate::error::Kind;

fn parse(url: &str) -> Result<ConnectOptions> {
    ConnectOptions::parse_in(url, None, &|_| None)
}

fn refusal(url: &str) -> String {
    let error = parse(url).expect_err(url);
    assert_eq!(error.kind(), Kind::Config, "{url}");
    error.full()
}

#[test]
fn defaults_fill_what_the_url_leaves_out() {
    let o = parse("postgresql://").unwrap();
    assert_eq!(o.describe(), "postgres@localhost:5432/postgres");
    assert_eq!((o.sslmode(), o.connect_timeout), (SslMode::Prefer, CONNECT_TIMEOUT));
    assert_eq!(parse("postgres://ana@db.example").unwrap().describe(), "ana@db.example:5432/ana");
}

#[test]
fn every_part_is_percent_decoded() {
    let o = parse("postgresql://an%40a:p%3A%2Fs%23+s%25@h%2Dost:6000/d%20b?application_name=a%26b&options=-c%20work_mem%3D1+").unwrap();
    assert_eq!((o.user(), o.password.as_deref(), o.host(), o.port(), o.database()), ("an@a", Some("p:/s#+s%"), "h-ost", 6000, "d b"));
    assert_eq!((o.application_name.as_str(), o.options.as_deref()), ("a&b", Some("-c work_mem=1+")));
}

#[test]
fn ipv6_hosts_stand_in_brackets() {
    let o = parse("postgresql://u@[2001:db8::1]:5433/d").unwrap();
    assert_eq!((o.host(), o.port()), ("2001:db8::1", 5433));
    assert_eq!(o.describe(), "u@[2001:db8::1]:5433/d");
}

#[test]
fn socket_directories_are_hosts() {
    for url in [
        "postgresql:///d?host=/var/run/postgresql",
        "postgresql://u:p@/d?host=/var/run/postgresql",
        "postgresql://%2Fvar%2Frun%2Fpostgresql/d",
    ] {
        let o = parse(url).unwrap();
        assert_eq!(o.host, Host::Unix("/var/run/postgresql".into()), "{url}");
        assert!(o.is_local());
    }
}

#[test]
fn query_parameters_win_over_the_url_parts() {
    let o = parse("postgresql://u@h/d?host=g&port=7&user=v&dbname=e&password=x%2By&connect_timeout=3&hostaddr=10.0.0.1").unwrap();
    assert_eq!(o.describe(), "v@g:7/e");
    assert_eq!((o.password.as_deref(), o.connect_timeout.as_secs(), o.hostaddr), (Some("x+y"), 3, "10.0.0.1".parse().ok()));
}

#[test]
fn unknown_parameters_are_refused_by_name() {
    for name in ["pgbouncer", "target_session_attrs", "replication", "SSLMODE"] {
        assert!(refusal(&format!("postgresql://h/d?{name}=1")).contains(name));
    }
}

#[test]
fn bad_values_are_refused_with_their_rule() {
    assert!(refusal("postgresql://h?sslmode=allow").contains("verify-full"));
    assert!(refusal("postgresql://h?connect_timeout=0").contains("1 to 3600"));
    assert!(refusal("postgresql://h?port=70000").contains("port"));
    assert!(refusal("postgresql://h?hostaddr=h").contains("IP address"));
    assert!(refusal("postgresql://h?channel_binding=x").contains("require"));
    assert!(refusal("postgresql://h1,h2/d").contains("several hosts"));
    assert!(refusal("postgresql://h1:1,h2:2/d").contains("port"));
    for port in ["h:x", "[::1]5", "[::1]:x", "h:70000", "::1"] {
        assert!(refusal(&format!("postgresql://{port}/d")).contains("port"), "{port}");
    }
    assert!(refusal("mysql://h").contains("postgresql://"));
    assert!(refusal("host=localhost").contains("postgresql://"));
    assert!(refusal("postgresql://u%00:p@h").contains("zero byte"));
    assert!(refusal("postgresql://u%FF@h").contains("UTF-8"));
}

#[test]
fn no_error_or_debug_text_shows_the_password() {
    for url in
        ["postgresql://u:hush#x@h:1/d", "postgresql://u:hush@h:1x/d", "postgresql://u:hush@h/d?sslmode=no", "postgresql://u:hu/hush@h/d"]
    {
        assert!(!refusal(url).contains("hush"), "{url}: {}", refusal(url));
    }
    let o = parse("postgresql://u:hush@h/d").unwrap();
    assert!(!format!("{o:?} {}", o.describe()).contains("hush"));
}

#[test]
fn the_environment_fills_user_and_password() {
    let env = |name: &str| match name {
        "PGUSER" => Some("eve".to_owned()),
        "PGPASSWORD" => Some("from env".to_owned()),
        _ => None,
    };
    let o = ConnectOptions::parse_in("postgresql://h/d", None, &env).unwrap();
    assert_eq!((o.user(), o.password.as_deref()), ("eve", Some("from env")));
    let o = ConnectOptions::parse_in("postgresql://u:own@h/d", None, &env).unwrap();
    assert_eq!((o.user(), o.password.as_deref()), ("u", Some("own")));
}

#[test]
fn a_ca_makes_require_verify_the_chain() {
    let ca = Path::new("ca.crt");
    let with_ca = |url: &str| ConnectOptions::parse_in(url, Some(ca), &|_| None).unwrap();
    let o = with_ca("postgresql://h?sslmode=require");
    assert_eq!((o.sslmode(), o.system_roots), (SslMode::VerifyCa, false));
    assert_eq!(parse("postgresql://h?sslmode=require").unwrap().sslmode(), SslMode::Require);
    assert_eq!(parse("postgresql://h?sslmode=require&sslrootcert=x").unwrap().sslmode(), SslMode::VerifyCa);
}

#[test]
fn the_systems_roots_count_for_verify_full_alone() {
    let ca = Path::new("ca.crt");
    let o = ConnectOptions::parse_in("postgresql://h?sslmode=verify-full", Some(ca), &|_| None).unwrap();
    assert_eq!((o.ca_files.len(), o.system_roots), (1, true));
    let o = parse("postgresql://h?sslmode=verify-full&sslrootcert=own.crt").unwrap();
    assert_eq!((o.ca_files.len(), o.system_roots), (1, false));
    let o = parse("postgresql://h?sslrootcert=system").unwrap();
    assert_eq!((o.sslmode(), o.system_roots), (SslMode::VerifyFull, true));
    assert!(refusal("postgresql://h?sslmode=verify-ca").contains("tls_ca"));
    assert!(refusal("postgresql://h?sslmode=require&sslrootcert=system").contains("verify-full"));
}

#[test]
fn only_a_server_of_this_machine_may_be_without_tls_unasked() {
    let mode = |url: &str| parse(url).expect(url).sslmode();
    for local in ["postgresql://", "postgresql://localhost", "postgresql://LOCALHOST", "postgresql://127.1.2.3", "postgresql://[::1]"] {
        assert_eq!(mode(local), SslMode::Prefer, "{local}");
    }
    for local in ["postgresql://[::ffff:127.0.0.1]", "postgresql://db.example?hostaddr=127.0.0.1", "postgresql:///d?host=/run/pg"] {
        assert_eq!(mode(local), SslMode::Prefer, "{local}");
    }
    for far in
        ["postgresql://db.example", "postgresql://10.0.0.1", "postgresql://localhost.example", "postgresql://localhost?hostaddr=10.0.0.1"]
    {
        assert_eq!(mode(far), SslMode::VerifyFull, "{far}");
        assert_eq!(mode(&format!("{far}{}sslmode=disable", if far.contains('?') { "&" } else { "?" })), SslMode::Disable, "{far}");
    }
}

#[test]
fn the_password_goes_in_clear_only_to_a_verified_server_or_by_name() {
    let auth = |query: &str| parse(&format!("postgresql://h/d?{query}")).expect(query).require_auth;
    let allowed = |auth: &RequireAuth, verified| {
        [Method::Trust, Method::Password, Method::Md5, Method::Scram].map(|method| auth.allows(method, verified))
    };
    let default = auth("");
    assert_eq!((allowed(&default, false), allowed(&default, true)), ([true, false, false, true], [true; 4]));
    let named = auth("require_auth=md5,password");
    assert_eq!((allowed(&named, false), allowed(&named, true)), ([false, true, true, false], [false, true, true, false]));
    let refused = auth("require_auth=!none,!md5");
    assert_eq!((allowed(&refused, false), allowed(&refused, true)), ([false, false, false, true], [false, true, false, true]));
    for bad in ["", "gss", "!none,md5", "md5,!none", "md5,"] {
        assert!(refusal(&format!("postgresql://h/d?require_auth={bad}")).contains("scram-sha-256"), "{bad}");
    }
}
