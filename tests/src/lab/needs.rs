//! Which programs a test drives, and what happens where they are missing.

use std::{
    io::Write,
    panic::Location,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Whether everything a test needs is here. If not, the test is skipped by name, and fails where `CI` is set: a fresh
/// machine gets the programs from `tests/setup.sh`, so a missing one there is a fault of the script.
///
/// `netns` stands for the right to make network namespaces; everything else is a program.
#[track_caller]
pub fn needs(what: &[&str]) -> bool {
    let missing: Vec<&str> = what.iter().copied().filter(|&w| !is_here(w)).collect();
    if missing.is_empty() {
        return true;
    }
    let at = Location::caller();
    let test = match std::thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => format!("{}:{}", at.file(), at.line()),
    };
    let ci = std::env::var_os("CI").is_some_and(|v| v == "true");
    // Not `eprintln!`, which a passing test hides.
    let _ = std::io::stderr().write_all(skip(&test, &missing, ci).as_bytes());
    false
}

/// What is said of a skipped test; tests/count counts it. Panics in CI.
fn skip(test: &str, missing: &[&str], ci: bool) -> String {
    let missing = missing.join(", ");
    assert!(!ci, "{test} needs {missing}, and CI skips nothing: see tests/setup.sh");
    format!("skipped {test}: needs {missing}\n")
}

/// Where a program is. PostgreSQL's own are not in Debian's `PATH`.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        dirs.extend(versions.flatten().map(|v| v.path().join("bin")));
    }
    dirs.into_iter().map(|dir| dir.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn is_here(what: &str) -> bool {
    match what {
        "netns" => may_make_namespaces(),
        name => program(name).is_some(),
    }
}

fn may_make_namespaces() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let name = format!("{}-probe", super::leftovers::own_prefix());
        let add =
            Command::new(program("ip").unwrap_or_else(|| "ip".into())).args(["netns", "add", &name]).output();
        let may = add.is_ok_and(|o| o.status.success());
        if may {
            super::leftovers::remove_namespace(&name);
        }
        may
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_and_misses_others() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program").is_none());
    }

    #[test]
    fn a_missing_program_skips_by_name_and_fails_in_ci() {
        assert_eq!(skip("journey", &["knotd", "psql"], false), "skipped journey: needs knotd, psql\n");
        assert!(std::panic::catch_unwind(|| skip("journey", &["knotd"], true)).is_err());
    }
}
