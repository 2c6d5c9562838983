//! What a person or a script sees of the command line: text, files, exit codes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, in a file of tests")]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

/// Runs the binary as if nothing of this machine's environment were set for it.
fn carrick(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carrick"));
    command.args(args);
    for variable in ["CARRICK_STATE_DIR", "CARRICK_LOG", "RUST_LOG", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn exits(output: &Output, code: i32) {
    let (out, err) = (stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{out}\nstderr:\n{err}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const COMMANDS: &[&str] = &[
    "up",
    "demo",
    "check",
    "status",
    "services",
    "connections",
    "explain",
    "connect",
    "disconnect",
    "trust",
    "trust show",
    "trust export",
    "trust import",
    "trust remove",
    "svid",
    "svid issue",
    "dns",
    "dns zone",
    "reload",
    "version",
    "completions",
    "config",
    "config schema",
    "config reference",
];

#[test]
fn every_help_has_examples() {
    for name in COMMANDS {
        let mut args: Vec<&str> = name.split(' ').collect();
        args.push("--help");
        let output = carrick(&args);
        exits(&output, 0);
        let help = stdout(&output);
        assert!(
            help.contains(&format!("EXAMPLES\n  carrick {name}"))
                || help.contains("EXAMPLES\n  carrick trust"),
            "{name}:\n{help}"
        );
        assert!(help.contains("--state-dir"), "{name} shows the global options");
    }
    let root = stdout(&carrick(&["--help"]));
    assert!(root.contains("EXIT CODES") && root.contains("3  no daemon is running"), "{root}");
    for name in COMMANDS.iter().filter(|n| !n.contains(' ')) {
        assert!(root.contains(&format!("\n  {name}")), "{name} is not in the list:\n{root}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for args in [
        &["status", "--colour"][..],
        &["stats"],
        &[],
        &["explain"],
        &["explain", "a@10.0.0.1"],
        &["connect", "postgres"],
        &["connect", "a@b.test", "--listen", "localhost:80"],
        &["services", "@not_a_domain"],
        &["trust", "import", "x.json"],
        &["status", "-o", "xml"],
        &["svid", "issue", "--out", "x"],
        &["svid", "issue", "--id", "cloud.test/nsc", "--out", "x"],
        &["svid", "issue", "--id", "spiffe://a.test/nsc", "--out", "x", "--lifetime", "1s"],
        &["dns", "zone", "-o", "bind"],
    ] {
        exits(&carrick(args), 2);
    }
    let err = stderr(&carrick(&["connect", "postgres"]));
    assert!(err.contains("`postgres` names no domain"), "{err}");
}

#[test]
fn without_a_daemon_the_exit_code_is_3_and_the_text_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let state = text(dir.path());
    for args in [
        &["status"][..],
        &["services"],
        &["connections"],
        &["explain", "a@b.test"],
        &["reload"],
        &["connect", "a@b.test"],
    ] {
        let output = command(args).args(["--state-dir", state]).output().unwrap();
        exits(&output, 3);
        let err = stderr(&output);
        assert_eq!(
            err,
            format!(
                "error: no carrick is running with state_dir {state}\n  hint: start `carrick up -c FILE`, or pass --state-dir\n"
            ),
        );
        assert!(stdout(&output).is_empty());
    }
}

#[test]
fn an_error_for_a_program_is_json() {
    let dir = tempfile::tempdir().unwrap();
    let output = carrick(&["status", "-o", "json", "--state-dir", text(dir.path())]);
    exits(&output, 3);
    let err: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(err["error"]["code"], "unavailable");
    assert!(err["error"]["hint"].as_str().unwrap().contains("carrick up"));
}

#[test]
fn the_state_dir_comes_from_the_flag_the_config_or_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    std::fs::write(&config, "domain: a.test\nstate_dir: /from/config\n").unwrap();
    let says = |args: &[&str]| stderr(&command(args).env("CARRICK_STATE_DIR", "/from/env").output().unwrap());
    assert!(says(&["status"]).contains("state_dir /from/env\n"));
    assert!(says(&["status", "-c", text(&config)]).contains("state_dir /from/config\n"));
    assert!(
        says(&["-c", text(&config), "status", "--state-dir", "/from/flag"])
            .contains("state_dir /from/flag\n")
    );
    assert!(
        stderr(&carrick(&["status"])).contains("state_dir /var/lib/carrick\n")
            || Path::new("/var/lib/carrick/admin.sock").exists()
    );
}

#[test]
fn a_good_config_is_ready_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    std::fs::write(&config, good(dir.path())).unwrap();
    let output = carrick(&["check", "-c", text(&config)]);
    exits(&output, 0);
    assert!(stdout(&output).ends_with("carrick.yaml: ready to start\n"), "{}", stdout(&output));

    let output = carrick(&["check", "-c", text(&config), "-o", "json"]);
    exits(&output, 0);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["ok"], true);
    assert!(report["findings"].as_array().unwrap().iter().all(|f| f["level"] == "ok"), "{report}");
}

/// The path of a file with the good config.
fn good_file(dir: &Path) -> String {
    let path = dir.join("carrick.yaml");
    std::fs::write(&path, good(dir)).unwrap();
    text(&path).to_owned()
}

fn good(dir: &Path) -> String {
    format!(
        "domain: a.test\nstate_dir: {}/state\nlisten: {{ control: '127.0.0.1:0', tunnel: '127.0.0.1:0', admin: '127.0.0.1:0' }}\n",
        dir.display()
    )
}

#[test]
fn a_bad_config_tells_all_its_faults_with_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    let bad = "domain: a.test\nlistn: {}\nexports:\n  - { service: web, to: 'web:80' }\n  - { servce: x, to: 'tcp://a:1' }\n";
    std::fs::write(&config, bad).unwrap();
    let output = carrick(&["check", "-c", text(&config)]);
    exits(&output, 2);
    let out = stdout(&output);
    assert!(out.contains("carrick.yaml:2:1: error: listn: ") && out.contains("listen"), "{out}");
    assert!(out.contains("carrick.yaml:4:") && out.contains("carrick.yaml:5:"), "{out}");

    let output = carrick(&["check", "-c", text(&config), "-o", "yaml"]);
    exits(&output, 2);
    assert!(stdout(&output).contains("ok: false\n"), "{}", stdout(&output));

    let output = carrick(&["up", "-c", text(&config)]);
    exits(&output, 2);
    let err = stderr(&output);
    assert!(
        err.starts_with("error: ") && err.contains("carrick.yaml:2:1: ") && err.contains("  hint: "),
        "{err}"
    );
}

#[test]
fn a_config_that_is_not_there_is_named() {
    let output = carrick(&["check", "-c", "/nowhere/carrick.yaml"]);
    exits(&output, 2);
    let err = stderr(&output);
    assert!(err.contains("/nowhere/carrick.yaml") && err.contains("  because: No such file"), "{err}");
}

#[test]
fn a_host_that_does_not_fit_is_a_failure_of_its_own() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    let addr = taken.local_addr().unwrap();
    std::fs::write(&config, good(dir.path()).replacen("127.0.0.1:0", &addr.to_string(), 1)).unwrap();
    let output = carrick(&["check", "-c", text(&config)]);
    exits(&output, 1);
    let out = stdout(&output);
    assert!(
        out.contains("error  listen.control") && out.contains(&format!("sport = :{}", addr.port())),
        "{out}"
    );
}

#[test]
fn completions_are_scripts_that_parse() {
    let script = carrick(&["completions", "bash"]);
    exits(&script, 0);
    let mut bash =
        Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script.stdout).unwrap();
    let parsed = bash.wait_with_output().unwrap();
    exits(&parsed, 0);
    assert!(stdout(&script).contains("--state-dir"));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let output = carrick(&["completions", shell]);
        exits(&output, 0);
        assert!(stdout(&output).contains("carrick"), "{shell}");
    }
}

#[test]
fn version_and_schema_are_for_programs_too() {
    let version: serde_json::Value =
        serde_json::from_slice(&carrick(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(stdout(&carrick(&["--version"])).starts_with("carrick "));
    let schema: serde_json::Value = serde_json::from_slice(&carrick(&["config", "schema"]).stdout).unwrap();
    assert!(schema["properties"]["exports"].is_object(), "{schema}");
    assert!(stdout(&carrick(&["config", "reference"])).starts_with("# "));
}

#[test]
fn two_state_dirs_exchange_their_roots() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (side, domain) in [(&a, "a.test"), (&b, "b.test")] {
        std::fs::create_dir(side).unwrap();
        let config = format!("domain: {domain}\nstate_dir: {}/state\n", side.display());
        std::fs::write(side.join("carrick.yaml"), config).unwrap();
    }
    let (config_a, config_b) = (a.join("carrick.yaml"), b.join("carrick.yaml"));
    let (state_a, state_b) = (a.join("state"), b.join("state"));

    // Before the first start the root is made, and after it no config is needed.
    let exported = carrick(&["trust", "export", "-c", text(&config_a)]);
    exits(&exported, 0);
    let again = carrick(&["trust", "export", "--state-dir", text(&state_a)]);
    exits(&again, 0);
    assert_eq!(stdout(&exported), stdout(&again));
    let bundle: serde_json::Value = serde_json::from_str(&stdout(&exported)).unwrap();
    assert_eq!(bundle["keys"][0]["use"], "x509-svid");
    let file = dir.path().join("a.json");
    std::fs::write(&file, &exported.stdout).unwrap();

    let imported =
        carrick(&["trust", "import", text(&file), "--domain", "a.test", "-c", text(&config_b), "-o", "json"]);
    exits(&imported, 0);
    let imported: serde_json::Value = serde_json::from_str(&stdout(&imported)).unwrap();
    assert_eq!((&imported["in_force"], &imported["replaced"]), (&false.into(), &serde_json::Value::Null));

    // Both sides show the same fingerprint for A's root.
    let fingerprints = |state: &Path| {
        let shown = carrick(&["trust", "show", "--state-dir", text(state), "-o", "json"]);
        exits(&shown, 0);
        let list: serde_json::Value = serde_json::from_str(&stdout(&shown)).unwrap();
        let rows = list["bundles"].as_array().unwrap();
        let row = rows.iter().find(|r| r["domain"] == "a.test").unwrap();
        (row["own"].as_bool().unwrap(), row["fingerprints"].clone())
    };
    assert_eq!(fingerprints(&state_a), (true, imported["fingerprints"].clone()));
    assert_eq!(fingerprints(&state_b), (false, imported["fingerprints"].clone()));

    // PEM by standard input, and a trust domain with another name than the domain.
    let root = std::fs::read_to_string(state_a.join("ca/root.pem")).unwrap();
    let certificate = root
        .split_inclusive("-----END CERTIFICATE-----\n")
        .find(|s| s.contains("BEGIN CERTIFICATE"))
        .unwrap();
    let certificate = &certificate[certificate.find("-----BEGIN CERTIFICATE").unwrap()..];
    let mut import = command(&["trust", "import", "-", "--domain", "alias.test", "--trust-domain", "a.test"])
        .args(["--state-dir", text(&state_b)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(certificate.as_bytes()).unwrap();
    let output = import.wait_with_output().unwrap();
    exits(&output, 0);
    assert!(stdout(&output).starts_with("alias.test is trusted from the next start on: trust domain a.test"));

    let remove = |code| {
        exits(&carrick(&["trust", "remove", "--domain", "a.test", "--state-dir", text(&state_b)]), code);
    };
    remove(0);
    remove(1);
}

#[test]
fn a_bundle_that_cannot_be_trusted_is_not_imported() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let config = dir.path().join("carrick.yaml");
    std::fs::write(&config, format!("domain: a.test\nstate_dir: {}\n", state.display())).unwrap();
    let bundle = carrick(&["trust", "export", "-c", text(&config)]);
    let file = dir.path().join("bundle.json");
    std::fs::write(&file, &bundle.stdout).unwrap();
    let import = |args: &[&str]| {
        let output = command(&["trust", "import"]).args(args).args(["-c", text(&config)]).output().unwrap();
        (output.status.code(), stderr(&output))
    };

    let (code, err) = import(&[text(&file), "--domain", "a.test"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("a.test is this daemon's own domain"), "{err}");
    let (code, err) = import(&[text(&file), "--domain", "b.test"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("  because: certificate 1 belongs to `spiffe://a.test`") && err.contains("  hint: "),
        "{err}"
    );
    let (code, err) = import(&["/nowhere.json", "--domain", "b.test"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("/nowhere.json"), "{err}");
    let root = state.join("ca/root.pem");
    let (code, err) = import(&[text(&root), "--domain", "b.test", "--trust-domain", "a.test"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("private key"), "{err}");
    assert!(!state.join("trust").exists(), "nothing was saved");
}

#[test]
fn nothing_to_export_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = carrick(&["trust", "export", "--state-dir", text(dir.path())]);
    exits(&output, 1);
    assert!(
        stderr(&output).contains("hint: start `carrick up -c FILE`, or make the root now"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).is_empty());
}

#[test]
fn up_takes_its_state_dir_from_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    std::fs::write(&config, good(dir.path())).unwrap();
    let output = carrick(&["up", "-c", text(&config), "--state-dir", "/elsewhere"]);
    exits(&output, 2);
    assert!(stderr(&output).contains("--state-dir /elsewhere is not the config's"), "{}", stderr(&output));
}

/// As somebody starts who tries it: in a directory with the config, and with names that are relative to it.
#[test]
fn a_daemon_starts_where_its_config_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = "domain: a.test\nstate_dir: state\nlisten: { control: \"127.0.0.1:0\", tunnel: \"127.0.0.1:0\", admin: off }\n";
    std::fs::write(dir.path().join("carrick.yaml"), config).unwrap();
    let here = |args: &[&str]| {
        let mut command = command(args);
        command.args(["-c", "carrick.yaml"]).current_dir(&dir);
        command
    };
    exits(&here(&["check"]).output().unwrap(), 0);
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut daemon = here(&["up"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let log = loop {
        let status = here(&["status"]).output().unwrap();
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        // It answers before it is ready.
        if log.contains("carrick is ready") && status.status.success() {
            break log;
        }
        assert_eq!(daemon.try_wait().unwrap(), None, "{log}");
        assert!(std::time::Instant::now() < end, "not ready:\n{log}");
    };
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child =
        command(&["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    exits(&output, 0);
    assert_eq!(stderr(&output), "");
}

/// Stays until it is told to stop, and takes up another domain's root meanwhile.
#[test]
fn a_kept_svid_follows_the_roots_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = good_file(dir.path());
    let out = dir.path().join("nsc");
    let id = "spiffe://a.test/nsc";
    let mut kept = command(&["svid", "issue", "-c", &config, "--id", id, "--out", text(&out), "--keep"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(kept.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("spiffe://a.test/nsc  ends in"));
    let first = std::fs::read(out.join("svid.pem")).unwrap();

    let other = dir.path().join("other.yaml");
    std::fs::write(&other, format!("domain: b.test\nstate_dir: {}/other\n", dir.path().display())).unwrap();
    let bundle = carrick(&["trust", "export", "-c", text(&other)]);
    exits(&bundle, 0);
    let file = dir.path().join("b.json");
    std::fs::write(&file, &bundle.stdout).unwrap();
    exits(&carrick(&["trust", "import", text(&file), "-c", &config, "--domain", "b.test"]), 0);
    let told = lines.find(|line| line.contains("bundle of b.test"));
    assert!(told.is_some(), "it ended");
    assert_ne!(std::fs::read(out.join("svid.pem")).unwrap(), first, "with a fresh SVID");
    assert!(out.join("federated/b.test.pem").exists());

    rustix::process::kill_process(rustix::process::Pid::from_child(&kept), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(kept.wait().unwrap().code(), Some(0));
}

#[test]
fn an_svid_is_issued_to_files_that_openssl_takes() {
    let dir = tempfile::tempdir().unwrap();
    let config = good_file(dir.path());
    let out = dir.path().join("nsc");
    let id = "spiffe://a.test/ns/x/pod/y";
    let issue = |more: &[&str]| {
        let mut args = vec!["svid", "issue", "--id", id, "--out", text(&out)];
        args.extend(more);
        carrick(&args)
    };
    // No daemon was ever started here, and nothing says which domain this is.
    let empty = dir.path().join("empty");
    let none = issue(&["--state-dir", text(&empty)]);
    exits(&none, 1);
    assert!(stderr(&none).contains("it has no root"), "{}", stderr(&none));

    let issued = issue(&["-c", &config, "--lifetime", "2h", "-o", "json"]);
    exits(&issued, 0);
    let said: serde_json::Value = serde_json::from_str(&stdout(&issued)).unwrap();
    assert_eq!(said["id"], id);
    assert_eq!(said["key"], text(&out.join("svid_key.pem")));
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(&out).output().unwrap();
        format!("{}{}", stdout(&output), stderr(&output))
    };
    let verified = openssl(&["verify", "-CAfile", "bundle.pem", "svid.pem"]);
    assert_eq!(verified, "svid.pem: OK\n");
    let names = openssl(&["x509", "-in", "svid.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(names.contains(&format!("URI:{id}")), "{names}");
    assert!(openssl(&["pkey", "-in", "svid_key.pem", "-noout", "-text"]).contains("prime256v1"));
    assert!(!stdout(&issue(&["-c", &config])).contains("PRIVATE KEY"));

    let gateway = ["svid", "issue", "--id", "spiffe://a.test/carrick/gateway", "--out", "x", "-c", &config];
    let own = carrick(&gateway);
    exits(&own, 2);
    assert!(stderr(&own).contains("is the daemon's own"), "{}", stderr(&own));
    let foreign = carrick(&["svid", "issue", "--id", "spiffe://b.test/x", "--out", "x", "-c", &config]);
    exits(&foreign, 2);
    assert!(stderr(&foreign).contains("the CA of `a.test` does not issue"), "{}", stderr(&foreign));
    assert!(!Path::new("x").exists());
}

#[test]
fn a_zone_is_printed_for_other_servers() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("carrick.yaml");
    std::fs::write(&config, "domain: a.test\nadvertise: [192.0.2.7]\n").unwrap();
    let zone = carrick(&["dns", "zone", "-c", text(&config)]);
    exits(&zone, 0);
    let printed = stdout(&zone);
    assert!(printed.starts_with("$ORIGIN a.test.\na.test."), "{printed}");
    assert!(printed.contains("0 0 7443 gw.a.test.") && !printed.contains("nsm-system"), "{printed}");
    let with = stdout(&carrick(&["dns", "zone", "--nsm", "-o", "zone", "-c", text(&config)]));
    assert!(with.contains("0 0 7443 registry.nsm-system.a.test."), "{with}");
    let bare = stdout(&carrick(&["dns", "zone", "--bare", "-c", text(&config)]));
    assert!(!bare.contains("SOA") && bare.contains("gw.a.test."), "{bare}");

    std::fs::write(&config, "domain: a.test\nlisten: { control: \"0.0.0.0:0\" }\n").unwrap();
    exits(&carrick(&["dns", "zone", "-c", text(&config)]), 2);
}

#[test]
fn variables_of_nsm_are_checked_with_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let config = good_file(dir.path());
    let check = |variables: &[(&str, &str)]| {
        command(&["check", "-c", &config]).envs(variables.iter().copied()).output().unwrap()
    };
    let sound = check(&[("NSM_NAME", "nsmgr-proxy-1"), ("NSM_PPROF_ENABLED", "true"), ("NSM_X", "s3cret")]);
    exits(&sound, 0);
    let said = stdout(&sound);
    assert!(said.contains("NSM_NAME") && said.contains("is in force for `compat.nsm.name`"), "{said}");
    assert!(said.contains("there is no Go runtime to profile") && !said.contains("s3cret"), "{said}");
    let bad = check(&[("NSM_LISTEN_ON", "https://:5004")]);
    exits(&bad, 1);
    assert!(stdout(&bad).contains("scheme `https`: expected tcp or unix"), "{}", stdout(&bad));
    let up = command(&["up", "-c", &config]).env("NSM_LISTEN_ON", "https://:5004").output().unwrap();
    exits(&up, 2);
}
