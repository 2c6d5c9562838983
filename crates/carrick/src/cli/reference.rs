//! `docs/reference/cli.md`, made from the command line itself and compared with the file by a test.

use clap::{Arg, Command, CommandFactory};

use crate::cli::{Cli, exit::EXIT_CODES};

/// Where the page is.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
/// Set, the test writes the page instead of comparing it.
const WRITE: &str = "CARRICK_WRITE_REFERENCE";

fn page() -> String {
    let mut root = Cli::command();
    // Gives every subcommand its global options and its full name.
    root.build();
    let mut text = String::from(
        "# Command line\n\n\
         <!-- Made from the code: CARRICK_WRITE_REFERENCE=1 cargo test -p carrick the_reference_page -->\n\n\
         Results go to standard output, remarks and errors to standard error. Colour is used on a terminal only, and \
         not when `NO_COLOR` is set.\n\nAn error is told as `error:`, each cause as `because:`, and what to do as \
         `hint:`; with `-o json` it is one object, `{\"error\": {\"code\", \"message\", \"because\", \"hint\"}}`.\n\n\
         ## Exit codes\n\n| code | meaning |\n|---|---|\n",
    );
    for line in EXIT_CODES.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").expect("code, two blanks, meaning");
        text.push_str(&format!("| {code} | {meaning} |\n"));
    }
    text.push_str("\n## Global options\n\n");
    options(&mut text, root.get_arguments().filter(|a| a.is_global_set()));
    text.push_str("\n## Environment\n\n| variable | meaning |\n|---|---|\n");
    text.push_str(
        "| `CARRICK_STATE_DIR` | state directory, when neither `--state-dir` nor `-c` is given |\n",
    );
    text.push_str("| `CARRICK_LOG`, `RUST_LOG` | what is logged, instead of the config's `log.level`: `debug`, `info,carrick_proxy=trace` |\n");
    text.push_str(
        "| `NSM_*` | the variables of Network Service Mesh's manifests that `up`, `check` and `dns zone` let win over the config: \
         [all of them](../guides/nsm.md#environment) |\n",
    );
    text.push_str("| `NO_COLOR` | no colour, when not empty |\n");
    for command in root.get_subcommands() {
        write_command(&mut text, command, 2);
    }
    text
}

fn write_command(text: &mut String, command: &Command, depth: usize) {
    if command.get_name() == "help" || command.is_hide_set() {
        return;
    }
    let name = command.get_bin_name().unwrap_or(command.get_name());
    text.push_str(&format!("\n{} {name}\n\n", "#".repeat(depth)));
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    text.push_str(&format!("{}.\n", about.trim_end_matches('.')));
    let own: Vec<&Arg> =
        command.get_arguments().filter(|a| !a.is_global_set() && a.get_id() != "help").collect();
    if !own.is_empty() {
        text.push('\n');
        options(text, own.into_iter());
    }
    if let Some(examples) = command.get_after_help() {
        text.push_str(&format!("\n```text\n{}\n```\n", examples.to_string().trim_end()));
    }
    for sub in command.get_subcommands() {
        write_command(text, sub, depth + 1);
    }
}

fn options<'a>(text: &mut String, args: impl Iterator<Item = &'a Arg>) {
    text.push_str("| option | meaning |\n|---|---|\n");
    for arg in args {
        let mut names: Vec<String> = Vec::new();
        names.extend(arg.get_short().map(|s| format!("-{s}")));
        names.extend(arg.get_long().map(|l| format!("--{l}")));
        let mut name = names.join(", ");
        if arg.get_action().takes_values() {
            let value = arg.get_value_names().map(|v| v.join(" ")).unwrap_or_default();
            name = format!("{name} {value}").trim().to_owned();
        }
        let help = arg.get_help().map(|h| h.to_string().replace('|', "\\|")).unwrap_or_default();
        let mut notes = Vec::new();
        let values: Vec<String> =
            arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
        if arg.get_action().takes_values() && !values.is_empty() {
            notes.push(values.join(", "));
        }
        let default: Vec<_> = arg.get_default_values().iter().map(|v| format!("`{}`", v.display())).collect();
        if !default.is_empty() && arg.get_action().takes_values() {
            notes.push(format!("default {}", default.join(" ")));
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        text.push_str(&format!("| `{name}` | {help}{notes} |\n"));
    }
}

#[test]
fn the_reference_page_is_what_the_code_says() {
    let made = page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(std::path::Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, &made).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        made == written,
        "docs/reference/cli.md is out of date: {WRITE}=1 cargo test -p carrick the_reference_page"
    );
}

#[test]
fn every_command_has_an_example_and_a_sentence() {
    fn visit(command: &Command) {
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let examples = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("EXAMPLES\n  carrick "), "{} has no examples", sub.get_name());
            assert!(sub.get_about().is_some(), "{} has no sentence", sub.get_name());
            assert!(
                page().contains(&format!(" {}\n", sub.get_name())),
                "{} is not on the page",
                sub.get_name()
            );
            visit(sub);
        }
    }
    visit(&Cli::command());
}
