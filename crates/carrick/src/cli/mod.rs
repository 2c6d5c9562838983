//! The command line: what a person types, and what it answers.

mod check;
pub(crate) mod connect;
mod connections;
mod dns;
mod exit;
mod explain;
pub(crate) mod output;
pub(crate) mod quantity;
#[cfg(test)]
mod reference;
mod reload;
mod report;
mod services;
pub(crate) mod status;
mod svid;
mod table;
mod trust;

use std::{future::Future, path::PathBuf, process::ExitCode};

use carrick_model::{Domain, ListenAddress, ServiceName};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
pub(crate) use exit::Exit;
pub(crate) use output::{Format, Mark, Output, Style};
pub(crate) use report::Advice;
use serde::Serialize;

use crate::{
    admin::{VERSION, client::Client},
    app, demo, logging,
    state_dir::{self, StateDir},
};

/// Where a package puts the config.
const DEFAULT_CONFIG: &str = "/etc/carrick/carrick.yaml";

/// Joins domains that share no network, no address plan and no root of trust: a workload in one uses a service of
/// another by name, `service@domain`.
#[derive(Debug, Parser)]
#[command(name = "carrick", version, after_help = exit::EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Form of the result
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    output: Format,
    /// Config file; its `state_dir` says which daemon is meant
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// State directory of the daemon that is meant [default: the config's if -c is given, $CARRICK_STATE_DIR,
    /// /var/lib/carrick]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    state_dir: Option<PathBuf>,
    /// Log more: -v debug, -vv trace. CARRICK_LOG or RUST_LOG says it per module
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a domain: registry, proxy, gateway, DNS and admin API in this process
    #[command(after_help = "\
EXAMPLES
  carrick up -c carrick.yaml            in the foreground; Ctrl-C drains and ends it
  carrick up                            with /etc/carrick/carrick.yaml
  kill -HUP $(cat /var/lib/carrick/admin.lock)   read the config again")]
    Up,
    /// Show two domains talking to each other on this machine; needs no root, no network and no config
    #[command(after_help = "\
EXAMPLES
  carrick demo                          step by step, then runs until Ctrl-C with commands to try
  carrick demo --check                  unattended: verifies itself and exits 0 or 1")]
    Demo {
        /// Run unattended, verify a large transfer and many short flows, and exit
        #[arg(long)]
        check: bool,
    },
    /// Check a config and the host it is for, without starting anything
    #[command(after_help = "\
EXAMPLES
  carrick check -c carrick.yaml         every fault with its line, then state_dir, ports, bundles, targets
  carrick check -c carrick.yaml -o json | jq '.findings[] | select(.level == \"error\")'

EXIT CODES
  0 with warnings at most, 2 when the config has faults, 1 when the host does not fit it")]
    Check,
    /// Show the daemon at a glance: identity, listeners, imports, exports, tunnels
    #[command(after_help = "\
EXAMPLES
  carrick status
  carrick status -c carrick.yaml        of the daemon with this config
  carrick status -o json | jq '.imports[] | select(.state != \"up\")'

EXIT CODES
  0 when the daemon is ready, 4 when it is not, 3 when there is none")]
    Status,
    /// List services: what is exported and imported here, or what another domain offers
    #[command(after_help = "\
EXAMPLES
  carrick services                      exports and imports of this daemon
  carrick services @onprem.example.com  asks that domain's registry")]
    Services {
        /// Ask this domain
        #[arg(value_name = "@DOMAIN", value_parser = parse_domain)]
        domain: Option<Domain>,
    },
    /// List connections in both directions
    #[command(after_help = "\
EXAMPLES
  carrick connections
  carrick connections -o yaml")]
    Connections,
    /// Walk every step from a name to a flow, with time, evidence and verdict
    #[command(after_help = "\
EXAMPLES
  carrick explain postgres@onprem.example.com
  carrick explain postgres              a service of this domain

EXIT CODES
  0 when every step works, 4 when one fails")]
    Explain {
        /// service@domain, or a service of this domain
        #[arg(value_name = "NAME", value_parser = explain::parse_name)]
        name: String,
    },
    /// Make a service of another domain reachable here, for as long as this command runs
    #[command(after_help = "\
EXAMPLES
  carrick connect postgres@onprem.example.com --listen 127.0.0.1:15432
  carrick connect dns@onprem.example.com --listen udp://127.0.0.1:5300
  carrick connect web@onprem.example.com                  on a free port, which is printed
  carrick connect web@onprem.example.com --listen unix:///run/user/1000/web.sock --detach")]
    Connect {
        /// service@domain
        #[arg(value_name = "NAME")]
        service: ServiceName,
        /// Where applications connect: IP:PORT, tcp://IP:PORT, udp://IP:PORT or unix:///PATH; port 0 takes a free one
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: ListenAddress,
        /// Return at once and leave it in place until `carrick disconnect` or the daemon's end
        #[arg(long)]
        detach: bool,
    },
    /// End what `carrick connect --detach` made
    #[command(after_help = "\
EXAMPLES
  carrick disconnect postgres@onprem.example.com --listen 127.0.0.1:15432")]
    Disconnect {
        /// service@domain
        #[arg(value_name = "NAME")]
        service: ServiceName,
        /// Where it listens, as `carrick status` shows it
        #[arg(long, value_name = "ADDR")]
        listen: ListenAddress,
    },
    /// Whom this domain trusts: show, export and import trust bundles
    #[command(subcommand, after_help = trust::EXAMPLES)]
    Trust(trust::Trust),
    /// Give identities of this domain to programs
    #[command(subcommand, after_help = svid::EXAMPLES)]
    Svid(svid::Svid),
    /// Names of this domain
    #[command(subcommand, after_help = dns::EXAMPLES)]
    Dns(dns::Dns),
    /// Have the daemon read its config and its imported bundles again
    #[command(after_help = "\
EXAMPLES
  carrick reload
  carrick check -c carrick.yaml && carrick reload -c carrick.yaml")]
    Reload,
    /// Print the version
    #[command(after_help = "\
EXAMPLES
  carrick version
  carrick version -o json | jq -r .version")]
    Version,
    /// Print a completion script for a shell
    #[command(after_help = "\
EXAMPLES
  carrick completions bash > /etc/bash_completion.d/carrick
  carrick completions zsh > \"${fpath[1]}/_carrick\"
  carrick completions fish > ~/.config/fish/completions/carrick.fish")]
    Completions {
        /// For this shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print what carrick.yaml may say
    #[command(
        subcommand,
        after_help = "\
EXAMPLES
  carrick config schema > carrick.schema.json     for editors and linters
  carrick config reference | less"
    )]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// The JSON schema of carrick.yaml
    #[command(after_help = "EXAMPLES\n  carrick config schema > carrick.schema.json")]
    Schema,
    /// The reference page of carrick.yaml, in Markdown
    #[command(after_help = "EXAMPLES\n  carrick config reference | less")]
    Reference,
}

/// Parses the command line, does what it says, and reports how it went.
pub(crate) fn run() -> ExitCode {
    // On a faulty command line, and for --help, clap prints and exits (with 2 and 0).
    let cli = Cli::parse();
    let format = cli.global.output;
    match cli.run() {
        Ok(code) => code,
        Err(err) => report::report(&err, format).into(),
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let Self { global, command } = self;
        if !matches!(command, Command::Up | Command::Demo { .. }) {
            logging::init_command(global.verbose)?;
        }
        let output = Output::new(global.output);
        let exit = match command {
            Command::Up => return up(&global).map(|()| Exit::Ok.into()),
            Command::Demo { check } => {
                logging::init_demo(global.verbose)?;
                return demo::run(check);
            }
            Command::Check => block_on(check::run(&global.config_or_default(), output))??,
            Command::Status => block_on(status::run(&global.client()?, output))??,
            Command::Services { domain } => {
                block_on(services::run(&global.client()?, domain.as_ref(), output))??
            }
            Command::Connections => block_on(connections::run(&global.client()?, output))??,
            Command::Explain { name } => block_on(explain::run(&global.client()?, &name, output))??,
            Command::Connect { service, listen, detach } => {
                block_on(connect::run(&global.client()?, service, listen, detach, output))??
            }
            Command::Disconnect { service, listen } => {
                block_on(connect::disconnect(&global.client()?, service, listen))??
            }
            Command::Trust(command) => block_on(trust::run(command, &global, output))??,
            Command::Svid(command) => svid::run(command, &global, output)?,
            Command::Dns(command) => dns::run(&command, &global.config_or_default(), output)?,
            Command::Reload => block_on(reload::run(&global.client()?, output))??,
            Command::Version => version(output)?,
            Command::Completions { shell } => completions(shell)?,
            Command::Config(ConfigCommand::Schema) => {
                output::print(&(serde_json::to_string_pretty(&carrick_config::schema())? + "\n"))?;
                Exit::Ok
            }
            Command::Config(ConfigCommand::Reference) => {
                output::print(&carrick_config::reference_markdown())?;
                Exit::Ok
            }
        };
        Ok(exit.into())
    }
}

impl Global {
    /// The config file for a command that cannot do without one.
    fn config_or_default(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into())
    }

    /// The config, when `-c` was given.
    fn load_config(&self) -> anyhow::Result<Option<carrick_config::Config>> {
        Ok(self.config.as_deref().map(carrick_config::load).transpose()?)
    }

    /// Which daemon is meant: `--state-dir`, the config's, the environment's, the default.
    fn state_dir(&self) -> anyhow::Result<StateDir> {
        if let Some(dir) = &self.state_dir {
            return Ok(StateDir::new(dir));
        }
        if let Some(config) = self.load_config()? {
            return Ok(StateDir::new(config.state_dir));
        }
        let of_environment = std::env::var_os(state_dir::ENV).filter(|dir| !dir.is_empty());
        Ok(of_environment.map_or_else(|| StateDir::new(state_dir::DEFAULT), StateDir::new))
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.state_dir()?))
    }
}

fn up(global: &Global) -> anyhow::Result<()> {
    let path = global.config_or_default();
    let (config, environment) = app::load_config(&path)?;
    if let Some(dir) = global.state_dir.as_ref().filter(|dir| **dir != config.state_dir) {
        let message =
            format!("--state-dir {} is not the config's, {}", dir.display(), config.state_dir.display());
        // A reload reads the file alone, so an override here would not survive it.
        return Err(Advice::usage(message, format!("change `state_dir:` in {}", path.display())).into());
    }
    let _written_before_the_end = logging::init(&config.log, global.verbose)?;
    app::tell_environment(&environment);
    app::store::tell_unused(&config);
    app::run(config, Some(path))
}

/// Runs a command on a runtime of its own: one thread is plenty for one question.
fn block_on<F: Future>(command: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(command))
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    admin_api: u32,
    os: &'static str,
    arch: &'static str,
    debug: bool,
}

fn version(output: Output) -> anyhow::Result<Exit> {
    let version = Version {
        version: VERSION,
        admin_api: crate::admin::API_VERSION,
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        debug: cfg!(debug_assertions),
    };
    output.show(&version, |v, _| {
        let profile = if v.debug { " debug" } else { "" };
        format!("carrick {} ({}-{}{profile}, admin API {})\n", v.version, v.os, v.arch, v.admin_api)
    })?;
    Ok(Exit::Ok)
}

fn completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "carrick", &mut script);
    output::print(&String::from_utf8(script)?)?;
    Ok(Exit::Ok)
}

/// `@onprem.test`, or without the `@`.
fn parse_domain(text: &str) -> Result<Domain, String> {
    text.strip_prefix('@').unwrap_or(text).parse::<Domain>().map_err(|err| err.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flag_wins_over_the_config() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("carrick.yaml");
        std::fs::write(&file, "domain: a.test\nstate_dir: /from/config\n").unwrap();
        let state_dir = |flag: Option<&str>| {
            let flag = flag.map(PathBuf::from);
            Global { output: Format::Human, config: Some(file.clone()), state_dir: flag, verbose: 0 }
                .state_dir()
                .unwrap()
        };
        assert_eq!(state_dir(None), StateDir::new("/from/config"));
        assert_eq!(state_dir(Some("/from/flag")), StateDir::new("/from/flag"));
    }
}
