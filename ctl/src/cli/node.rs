//! The grammar of what is about the nodes.

use std::{str::FromStr, time::Duration};

use clap::{Args, Subcommand};

use super::{Output, duration};

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes: how each is, what it takes, and what it runs
    #[command(after_help = "\
STATE is Ready or Down (its heartbeats stopped, or it has not yet ended what it must no longer run). AVAILABILITY is \
what people want of it: Active takes tasks, Pause keeps what it has, Drain is emptied. TASKS counts what is bound to \
it and has not ended.

Examples:
  rctl node ls
  rctl node ls -o wide          with hardware and what is reserved of it
  rctl node ls -o json | jq -r '.[] | select(.state == \"Down\") | .name'")]
    Ls(Output),

    /// Everything known of a node, with its tasks
    #[command(after_help = "Examples:\n  rctl node inspect vm1\n  rctl node inspect vm1 -o yaml")]
    Inspect {
        /// Its name
        #[arg(value_name = "NODE")]
        node: String,
        #[command(flatten)]
        output: Output,
    },

    /// Move all tasks off nodes, and place no new ones there
    #[command(after_help = "\
Tasks leave as their service is updated: by its order and so many at once. One that fits on no other node stays where \
it is, and `rctl ps` says why. Waits until the nodes are empty; Ctrl-C stops the waiting only.

Examples:
  rctl node drain vm1
  rctl node drain vm1 vm2 --timeout 15m
  rctl node drain vm1 && ssh vm1 reboot; rctl node activate vm1")]
    Drain(Drain),

    /// Let nodes take tasks again, after a drain or a pause
    #[command(after_help = "\
What runs elsewhere stays there; new tasks come to the emptiest nodes first.

Examples:
  rctl node activate vm1 vm2")]
    Activate(Nodes),

    /// Place no new tasks on nodes; what they have goes on
    #[command(after_help = "Examples:\n  rctl node pause vm1\n  rctl node activate vm1")]
    Pause(Nodes),

    /// Give a node labels, or take them away
    #[command(after_help = "\
Each CHANGE is KEY=VALUE, which sets a label, or KEY-, which removes it. They win over the labels that the node's agent \
was started with.

Examples:
  rctl node label vm1 zone=a disk=ssd
  rctl node label vm1 disk-")]
    Label(Label),

    /// Forget nodes, and refuse their certificates from then on
    #[command(after_help = "\
A node must be Down, or drained and empty. With --force it is forgotten as it is: its tasks are placed elsewhere, while \
what still runs there goes on until its agent is stopped. A host comes back with a new token (`rctl token create`).

Examples:
  rctl node drain vm1 && rctl node rm vm1
  rctl node rm vm7 --force          which burned down a second ago")]
    Rm(RemoveNodes),
}

#[derive(Debug, Args)]
pub struct Nodes {
    /// Their names
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    pub nodes: Nodes,
    /// Return once it is decided, without waiting for the nodes to be empty
    #[arg(short, long)]
    pub detach: bool,
    /// How long to wait for the nodes to be empty, as 90s or 5m; 0 waits for ever
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct Label {
    /// The node's name
    #[arg(value_name = "NODE")]
    pub node: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "CHANGE")]
    pub changes: Vec<LabelChange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelChange {
    Set(String, String),
    Remove(String),
}

#[derive(Debug, Args)]
pub struct RemoveNodes {
    #[command(flatten)]
    pub nodes: Nodes,
    /// Even a node that is Ready, and although tasks may still run there
    #[arg(long)]
    pub force: bool,
}

impl FromStr for LabelChange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HINT: &str = "write KEY=VALUE to set a label, or KEY- to remove it";
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some(("", _)), _) | (None, Some("") | None) => Err(HINT),
            (Some((key, value)), _) => Ok(Self::Set(key.to_owned(), value.to_owned())),
            (None, Some(key)) => Ok(Self::Remove(key.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed_as_they_are_written() {
        let set = |key: &str, value: &str| Ok(LabelChange::Set(key.to_owned(), value.to_owned()));
        assert_eq!("zone=a".parse(), set("zone", "a"));
        assert_eq!("zone=".parse(), set("zone", ""));
        assert_eq!("zone=a=b-".parse(), set("zone", "a=b-"));
        assert_eq!("zone-".parse(), Ok(LabelChange::Remove("zone".to_owned())));
        for wrong in ["", "zone", "-", "=a"] {
            assert!(wrong.parse::<LabelChange>().is_err(), "{wrong:?}");
        }
    }
}
