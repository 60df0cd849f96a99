//! The controllers, tokens and people, as text and as documents.

use std::fmt::Write;

use roster_proto::{cause::Brief, time::Timestamp, wire};
use serde::Serialize;

use super::{
    list::{ago, ago_or_ahead},
    style::{BAD, BUSY, FAINT, GOOD},
    table::{Cell, Table, clean},
};

#[derive(Debug, Serialize)]
pub struct ClusterView {
    /// Absent: never initialised.
    pub cluster: Option<String>,
    /// The leader's name, or its id; absent: nobody leads.
    pub leader: Option<String>,
    pub term: u64,
    pub commit: u64,
    pub version: u64,
    /// The controller whose view this is.
    pub answered_by: String,
    pub controllers: Vec<ControllerView>,
    pub settings: SettingsView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brake: Option<BrakeView>,
    pub authorities: Vec<String>,
    #[serde(skip)]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct ControllerView {
    pub name: String,
    pub id: String,
    pub address: String,
    pub role: &'static str,
    pub leader: bool,
    pub reachable: bool,
    /// Entries of the log that it has yet to confirm, as the leader knows.
    pub lag: Option<u64>,
    pub last_heard: Option<String>,
    pub release: String,
    /// The newest version of the controllers' protocol that it speaks.
    pub protocol: u32,
    #[serde(skip)]
    heard: String,
}

#[derive(Debug, Serialize)]
pub struct SettingsView {
    pub replace_controller_after: String,
    pub brake_for: String,
    pub certificate_lifetime: String,
}

#[derive(Debug, Serialize)]
pub struct BrakeView {
    pub since: String,
    pub until: Option<String>,
    pub nodes: Vec<String>,
}

fn peer(id: u64) -> String {
    format!("{id:016x}")
}

fn role(controller: &wire::Controller) -> &'static str {
    match controller.role() {
        wire::controller::Role::Voter => "voter",
        wire::controller::Role::Learner => "learner",
        wire::controller::Role::Spare => "spare",
        wire::controller::Role::Unspecified => "unknown",
    }
}

/// Microseconds that say nothing when they are 0.
fn moment(micros: u64) -> Option<Timestamp> {
    (micros > 0).then_some(Timestamp(micros))
}

fn span(micros: u64) -> String {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000;
    match micros {
        0 => "never".to_owned(),
        days if days % DAY == 0 => format!("{}d", days / DAY),
        other => Brief(std::time::Duration::from_micros(other)).to_string(),
    }
}

impl SettingsView {
    fn new(settings: &wire::ClusterSettings) -> Self {
        Self {
            replace_controller_after: span(settings.replace_controller_after),
            brake_for: span(settings.brake_for),
            certificate_lifetime: span(settings.certificate_lifetime),
        }
    }
}

impl ClusterView {
    pub fn new(status: &wire::ClusterStatus, now: Timestamp) -> Self {
        let name_of = |id: u64| match status.controllers.iter().find(|controller| controller.id == id) {
            Some(controller) if !controller.name.is_empty() => controller.name.clone(),
            _ => peer(id),
        };
        let leads = status.leader != 0;
        // Only the leader knows how far the others are.
        let by_leader = leads && status.answered_by == status.leader;
        let controllers = status.controllers.iter().map(|controller| {
            let leader = leads && controller.id == status.leader;
            ControllerView {
                name: controller.name.clone(),
                id: peer(controller.id),
                address: controller.address.clone(),
                role: role(controller),
                leader,
                reachable: controller.reachable || controller.id == status.answered_by,
                lag: by_leader.then(|| if leader { 0 } else { status.commit.saturating_sub(controller.matched) }),
                last_heard: moment(controller.last_heard).map(|at| at.to_string()),
                release: controller.release.clone(),
                protocol: controller.protocol,
                heard: match moment(controller.last_heard) {
                    _ if controller.id == status.answered_by => "-".to_owned(),
                    Some(at) if now.since(at) < std::time::Duration::from_secs(1) => "now".to_owned(),
                    Some(at) => format!("{} ago", ago(now, at)),
                    None => "never".to_owned(),
                },
            }
        });
        let brake = status.brake.as_ref().map(|brake| BrakeView {
            since: Timestamp(brake.since).to_string(),
            until: brake.until.map(|until| Timestamp(until).to_string()),
            nodes: brake.nodes.clone(),
        });
        let mut view = Self {
            cluster: Some(status.cluster.clone()).filter(|cluster| !cluster.is_empty()),
            leader: leads.then(|| name_of(status.leader)),
            term: status.term,
            commit: status.commit,
            version: status.version,
            answered_by: name_of(status.answered_by),
            controllers: controllers.collect(),
            settings: SettingsView::new(&status.settings.unwrap_or_default()),
            brake,
            authorities: status.authorities.clone(),
            warnings: Vec::new(),
        };
        view.warnings = view.judge(status, by_leader, now);
        view
    }

    /// What somebody should look at.
    fn judge(&self, status: &wire::ClusterStatus, by_leader: bool, now: Timestamp) -> Vec<String> {
        let mut warnings = Vec::new();
        let voters: Vec<_> = self.controllers.iter().filter(|controller| controller.role == "voter").collect();
        let gone = voters.iter().filter(|controller| by_leader && !controller.reachable).count();
        let spare = voters.len().saturating_sub(1) / 2;
        if self.leader.is_none() && !voters.is_empty() {
            warnings.push(format!(
                "nobody leads: {} of {} voters must be up and in touch before anything can be changed",
                voters.len() / 2 + 1,
                voters.len()
            ));
        } else if gone > 0 && gone >= spare {
            warnings.push(format!(
                "{gone} of {} voters cannot be reached: if another is lost, nothing can be changed any more",
                voters.len()
            ));
        }
        let releases: std::collections::BTreeSet<_> = self
            .controllers
            .iter()
            .map(|controller| &controller.release)
            .filter(|release| !release.is_empty())
            .collect();
        if releases.len() > 1 {
            let all: Vec<_> = releases.into_iter().map(String::as_str).collect();
            warnings.push(format!("the controllers run different releases ({}): finish the upgrade", all.join(", ")));
        }
        if self.authorities.len() > 1 {
            warnings.push(format!("{} authorities are trusted: a rotation is under way", self.authorities.len()));
        }
        warnings.extend(status.brake.as_ref().map(|brake| brake_warning(brake, now)));
        warnings
    }
}

/// What holds, since when, and how it ends.
pub fn brake_warning(brake: &wire::Brake, now: Timestamp) -> String {
    let until = brake.until.map(|until| format!(", or in {} by itself", Brief(Timestamp(until).since(now))));
    format!(
        "the brake has been on for {}: {} vanished at once ({}), and nothing is moved off them until they are back, or \
         `rctl cluster release`{}",
        ago(now, Timestamp(brake.since)),
        if brake.nodes.len() == 1 { "one node".to_owned() } else { format!("{} nodes", brake.nodes.len()) },
        brake.nodes.join(", "),
        until.unwrap_or_default(),
    )
}

pub fn status(view: &ClusterView, wide: bool) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{:<11}{}", format!("{key}:"), clean(&value));
    };
    line("Cluster", view.cluster.clone().unwrap_or_else(|| "none yet: `rctl cluster init` begins one".to_owned()));
    line(
        "Leader",
        match &view.leader {
            Some(leader) => format!("{leader} (term {})", view.term),
            None => format!("none (term {})", view.term),
        },
    );
    line("Log", format!("{} committed, state version {}", view.commit, view.version));
    if wide {
        let settings = &view.settings;
        line(
            "Settings",
            format!(
                "replace-controller-after={} brake-for={} certificate-lifetime={}",
                settings.replace_controller_after, settings.brake_for, settings.certificate_lifetime
            ),
        );
        for authority in &view.authorities {
            line("Authority", authority.clone());
        }
        line("Told by", view.answered_by.clone());
    }
    out.push('\n');
    out.push_str(&controllers(view, wide).render());
    for warning in &view.warnings {
        let _ = write!(out, "\n{BUSY}warning:{BUSY:#} {}\n", clean(warning));
    }
    out
}

fn controllers(view: &ClusterView, wide: bool) -> Table {
    let mut table = match wide {
        true => Table::new(["CONTROLLER", "ID", "ROLE", "STATE", "LAG", "HEARD", "RELEASE", "PROTOCOL", "ADDRESS"]),
        false => Table::new(["CONTROLLER", "ROLE", "STATE", "LAG", "RELEASE", "ADDRESS"]),
    };
    for controller in &view.controllers {
        let knows = controller.lag.is_some() || controller.reachable;
        let (state, style) = match (controller.leader, controller.reachable) {
            (true, _) => ("leads", GOOD),
            (false, true) => ("follows", GOOD),
            (false, false) if knows => ("unreachable", BAD),
            (false, false) => ("unknown", FAINT),
        };
        let mut cells = vec![Cell::from(controller.name.clone())];
        if wide {
            cells.push(controller.id.clone().into());
        }
        cells.push(controller.role.into());
        cells.push(Cell::styled(state, style));
        cells.push(controller.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()).into());
        if wide {
            cells.push(controller.heard.clone().into());
        }
        cells.push(controller.release.clone().into());
        if wide {
            cells.push(controller.protocol.to_string().into());
        }
        cells.push(controller.address.clone().into());
        table.row(cells);
    }
    table
}

pub fn settings(settings: &wire::ClusterSettings) -> String {
    let view = SettingsView::new(settings);
    format!(
        "replace-controller-after={}\nbrake-for={}\ncertificate-lifetime={}\n",
        view.replace_controller_after, view.brake_for, view.certificate_lifetime
    )
}

#[derive(Debug, Serialize)]
pub struct TokenInfo {
    pub id: String,
    pub role: String,
    pub created: String,
    pub expires: String,
    pub uses_left: u32,
}

impl From<&wire::TokenView> for TokenInfo {
    fn from(view: &wire::TokenView) -> Self {
        Self {
            id: view.id.clone(),
            role: view.role.clone(),
            created: Timestamp(view.created).to_string(),
            expires: Timestamp(view.expires).to_string(),
            uses_left: view.uses_left,
        }
    }
}

pub fn tokens(tokens: &[wire::TokenView], now: Timestamp) -> Table {
    let mut table = Table::new(["TOKEN", "ROLE", "USES LEFT", "EXPIRES", "CREATED"]);
    for token in tokens {
        table.row([
            token.id.clone().into(),
            token.role.clone().into(),
            token.uses_left.to_string().into(),
            ago_or_ahead(now, Timestamp(token.expires)).into(),
            format!("{} ago", ago(now, Timestamp(token.created))).into(),
        ]);
    }
    table
}

/// How often and how long, as a part of a sentence.
pub fn token_limits(token: &wire::TokenView, now: Timestamp) -> String {
    let times = if token.uses_left == 1 { "once".to_owned() } else { format!("{} times", token.uses_left) };
    format!(", {times}, within {}", Brief(Timestamp(token.expires).since(now)))
}

#[derive(Debug, Serialize)]
pub struct UserInfo {
    pub name: String,
    pub role: String,
    pub created: String,
    pub expires: String,
}

impl From<&wire::UserView> for UserInfo {
    fn from(view: &wire::UserView) -> Self {
        Self {
            name: view.name.clone(),
            role: view.role.clone(),
            created: Timestamp(view.created).to_string(),
            expires: Timestamp(view.expires).to_string(),
        }
    }
}

pub fn users(users: &[wire::UserView], now: Timestamp) -> Table {
    let mut table = Table::new(["USER", "ROLE", "CERTIFICATE EXPIRES", "CREATED"]);
    for user in users {
        table.row([
            user.name.clone().into(),
            user.role.clone().into(),
            ago_or_ahead(now, Timestamp(user.expires)).into(),
            format!("{} ago", ago(now, Timestamp(user.created))).into(),
        ]);
    }
    table
}
