//! `carrick reload`

use crate::{
    admin::{api::ReloadReply, client::Client},
    cli::{Exit, Mark, Output, Style},
};

/// Has the daemon read its config again and shows what changed.
pub(crate) async fn run(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let reply = client.reload().await?;
    output.show(&reply, human)?;
    Ok(Exit::Ok)
}

fn human(reply: &ReloadReply, style: Style) -> String {
    let mut text: String = reply.applied.iter().map(|line| format!("{line}\n")).collect();
    if !reply.restart_needed.is_empty() {
        let keys = reply.restart_needed.join(", ");
        let sentence = format!("changed, but in force only after a restart: {keys}");
        text.push_str(&format!("{}\n", style.paint(Mark::Warning, sentence)));
    }
    if text.is_empty() {
        text.push_str("nothing changed\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_says_what_it_did_and_what_it_could_not() {
        let reply = ReloadReply {
            applied: vec!["import postgres@onprem.test: added".into()],
            restart_needed: vec!["listen.control".into(), "domain".into()],
        };
        assert_eq!(
            human(&reply, Style::default()),
            "import postgres@onprem.test: added\n\
             changed, but in force only after a restart: listen.control, domain\n"
        );
        assert_eq!(human(&ReloadReply::default(), Style::default()), "nothing changed\n");
    }
}
