//! `carrick connect` and `carrick disconnect`

use std::time::Duration;

use carrick_model::{ListenAddress, ServiceName};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin::{
        api::{ConnectReply, ConnectRequest, DisconnectRequest, ImportState},
        client::{Client, Hold},
    },
    cli::{Advice, Exit, Output, Style, output::note},
};

/// How often a change of state is looked for: what a person notices.
const WATCH: Duration = Duration::from_secs(1);

/// Makes the import, and unless it is detached keeps it until a signal comes or the daemon stops.
pub(crate) async fn run(
    client: &Client,
    service: ServiceName,
    listen: ListenAddress,
    detach: bool,
    output: Output,
) -> anyhow::Result<Exit> {
    let request = ConnectRequest { service, listen, hold: !detach };
    if detach {
        let reply = client.connect(&request).await?;
        output.show(&reply, human)?;
        return Ok(Exit::Ok);
    }
    // Before the import is made, so that no signal ends us between.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (reply, mut hold) = client.hold(&request).await?;
    output.show(&reply, human)?;
    if !output.is_machine() {
        note("Ctrl-C ends it");
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = hold.ended() => {
            let message = format!("the daemon stopped, and with it the import of {}", reply.service);
            return Err(Advice::new(message, "look at the daemon's log").into());
        }
        () = watch(client, &reply) => {}
    }
    end(client, reply, hold).await?;
    Ok(Exit::Ok)
}

/// Ends what was left in place.
pub(crate) async fn disconnect(
    client: &Client,
    service: ServiceName,
    listen: ListenAddress,
) -> anyhow::Result<Exit> {
    client.disconnect(&DisconnectRequest { service, listen }).await?;
    Ok(Exit::Ok)
}

/// Asks for the end before letting go, so that the listener is closed when this command returns.
async fn end(client: &Client, reply: ConnectReply, hold: Hold) -> anyhow::Result<()> {
    let ended = client.disconnect(&DisconnectRequest { service: reply.service, listen: reply.listen }).await;
    drop(hold);
    Ok(ended?)
}

/// Tells changes of the import's state; a reason alone may hold times and differ at every attempt. Never completes while the daemon answers; what is wrong with a daemon that does
/// not, the hold finds out.
async fn watch(client: &Client, reply: &ConnectReply) {
    let mut seen = reply.state;
    loop {
        tokio::time::sleep(WATCH).await;
        let Ok(status) = client.status().await else { continue };
        let import = status
            .imports
            .into_iter()
            .find(|i| i.ad_hoc && i.service == reply.service && i.listen.contains(&reply.listen));
        let Some(import) = import else { continue };
        if import.state != seen {
            note(sentence(&reply.service, import.state, import.why.as_deref()));
            seen = import.state;
        }
    }
}

fn human(reply: &ConnectReply, _: Style) -> String {
    let state = sentence(&reply.service, reply.state, reply.why.as_deref());
    format!("{} listens on {}\n{state}\n", reply.service, reply.listen)
}

fn sentence(service: &ServiceName, state: ImportState, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("{service} is {state}: {why}"),
        None => format!("{service} is {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_says_where_and_how_it_stands() {
        let mut reply = ConnectReply {
            service: "postgres@onprem.test".parse().unwrap(),
            listen: "127.0.0.1:15432".parse().unwrap(),
            state: ImportState::Up,
            why: None,
        };
        assert_eq!(
            human(&reply, Style::default()),
            "postgres@onprem.test listens on tcp://127.0.0.1:15432\npostgres@onprem.test is up\n"
        );
        reply.state = ImportState::Down;
        reply.why = Some("denied".into());
        assert!(human(&reply, Style::default()).ends_with("postgres@onprem.test is down: denied\n"));
    }
}
