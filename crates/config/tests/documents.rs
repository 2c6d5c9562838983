//! The reference page is what the types say, and every config in the repository is one.

use std::path::{Path, PathBuf};

use carrick_config::{load, parse, reference_markdown, schema};

/// Set to have the reference page written instead of compared.
const BLESS: &str = "CARRICK_BLESS";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = repository().join("docs/reference/config.md");
    let page = reference_markdown();
    if std::env::var_os(BLESS).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference/config.md is out of date: {BLESS}=1 cargo test -p carrick-config"
    );
}

#[test]
fn the_schema_knows_every_fixed_key() {
    let schema = schema();
    for key in [
        "domain",
        "state_dir",
        "listen",
        "advertise",
        "identity",
        "trust",
        "dns",
        "peers",
        "exports",
        "imports",
        "registry",
        "compat",
        "trust_domain",
        "tunnel",
        "timeouts",
        "log",
        "drain_timeout",
        "limits",
    ] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(schema["required"], serde_json::json!(["domain"]));
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn every_example_is_sound_and_without_a_warning() {
    let directory = repository().join("deploy/examples");
    let files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let yaml: Vec<&PathBuf> =
        files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    assert!(yaml.len() >= 4, "{files:?}");
    for path in yaml {
        let config = load(path).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.warnings.is_empty(), "{}: {:?}", path.display(), config.warnings);
    }
}

#[test]
fn every_config_in_the_documentation_is_sound() {
    let mut pages = vec![repository().join("README.md")];
    markdown(&repository().join("docs"), &mut pages);
    let mut blocks = 0;
    for page in &pages {
        // The README is not yet there on a fresh tree; the reference page always is.
        let text = std::fs::read_to_string(page).unwrap_or_default();
        for (line, config) in configs(&text) {
            blocks += 1;
            if let Err(faults) = parse(&config) {
                panic!("{}, block on line {line}:\n{faults}", page.display());
            }
        }
    }
    assert!(blocks > 0, "the reference page has an example");
}

fn markdown(directory: &Path, pages: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            markdown(&path, pages);
        } else if path.extension().is_some_and(|ext| ext == "md") {
            pages.push(path);
        }
    }
}

/// The blocks fenced with "yaml config", each with the line of its fence.
fn configs(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        match &mut open {
            Some((start, _, block)) if bare.trim_end() == "```" => {
                blocks.push((*start, std::mem::take(block)));
                open = None;
            }
            // A block in a list is indented as its fence is.
            Some((_, indent, block)) => {
                block.push_str(line.get(*indent..).unwrap_or(bare));
                block.push('\n');
            }
            None if bare.trim_end() == "```yaml config" => {
                open = Some((index + 1, line.len() - bare.len(), String::new()));
            }
            None => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

#[test]
fn blocks_are_found_with_their_lines() {
    let text = "a\n```yaml config\ndomain: x\n```\n1. b\n   ```yaml config\n   domain: y\n   log: {}\n   ```\n```yaml\nno: 1\n```\n";
    let found = configs(text);
    assert_eq!(found, [(2, "domain: x\n".to_owned()), (6, "domain: y\nlog: {}\n".to_owned())]);
}
