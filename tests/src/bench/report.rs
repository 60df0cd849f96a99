//! The rows that `deploy/bench` prints.

use serde::Serialize;

use super::median;

#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// So many times better than the peer.
    Times(f64),
    /// At most so much.
    AtMost(f64),
    /// Nothing: it is only stated.
    Stated,
}

#[derive(Clone, Copy, Debug)]
pub enum Better {
    Less,
    More,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub bench: &'static str,
    pub metric: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub peer: Option<&'static str>,
    pub peer_value: Option<f64>,
    /// How many times better than the peer.
    pub ratio: Option<f64>,
    pub aim: String,
    /// `None`: the aim is a ratio and the peer is absent, or there is none.
    pub met: Option<bool>,
}

impl Row {
    /// For a metric of which less is better.
    pub fn new(
        bench: &'static str,
        metric: &'static str,
        (value, unit): (f64, &'static str),
        peer: Option<(&'static str, f64)>,
        aim: Aim,
    ) -> Self {
        let ratio = peer.map(|(_, peer_value)| peer_value / value);
        let (aim, met) = match aim {
            Aim::Times(times) => (format!("{times}x"), ratio.map(|ratio| ratio >= times)),
            Aim::AtMost(most) => (format!("<= {most} {unit}"), Some(value <= most)),
            Aim::Stated => ("-".to_owned(), None),
        };
        Self {
            bench,
            metric,
            value,
            unit,
            peer: peer.map(|(name, _)| name),
            peer_value: peer.map(|(_, value)| value),
            ratio,
            aim,
            met,
        }
    }

    /// For a metric of which more is better, to be so many times the peer's.
    pub fn more(
        bench: &'static str,
        metric: &'static str,
        measured: (f64, &'static str),
        peer: Option<(&'static str, f64)>,
        times: f64,
    ) -> Self {
        let ratio = peer.map(|(_, peer_value)| measured.0 / peer_value);
        let met = ratio.map(|ratio| ratio >= times);
        Self { ratio, met, ..Self::new(bench, metric, measured, peer, Aim::Times(times)) }
    }

    /// Of what was measured in turns: `values` and the peer's are medians, and so is how many times one is the other in the
    /// same turn.
    pub fn in_turns(
        bench: &'static str,
        metric: &'static str,
        (values, unit): (&[f64], &'static str),
        (peer, theirs): (&'static str, &[f64]),
        better: Better,
        times: f64,
    ) -> Self {
        let of_turn = |(ours, theirs): (&f64, &f64)| match better {
            Better::Less => theirs / ours,
            Better::More => ours / theirs,
        };
        let ratio = middle(values.iter().zip(theirs).map(of_turn).collect());
        let peer = Some((peer, middle(theirs.to_vec())));
        let row = Self::new(bench, metric, (middle(values.to_vec()), unit), peer, Aim::Times(times));
        Self { ratio: Some(ratio), met: Some(ratio >= times), ..row }
    }

    /// The same beside a peer's value; whether an absolute aim is met does not change.
    pub fn beside(&self, peer: &'static str, value: f64) -> Self {
        Self { peer: Some(peer), peer_value: Some(value), ratio: Some(value / self.value), ..self.clone() }
    }
}

fn middle(values: Vec<f64>) -> f64 {
    median(values).unwrap_or(f64::NAN)
}

pub fn print(rows: &[Row], json: bool) {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row).expect("a row is plain data"));
        }
        return;
    }
    println!(
        "{:<8} {:<44} {:>10} {:<3} {:>7} {:>10} {:>7}  {:<10} MET",
        "BENCH", "METRIC", "VALUE", "", "PEER", "VALUE", "RATIO", "AIM"
    );
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        println!(
            "{:<8} {:<44} {:>10.2} {:<3} {:>7} {:>10} {:>7}  {:<10} {}",
            row.bench,
            row.metric,
            row.value,
            row.unit,
            row.peer.unwrap_or("-"),
            number(row.peer_value),
            number(row.ratio),
            row.aim,
            match row.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None if row.peer.is_none() && row.aim != "-" => "no peer",
                None => "-",
            }
        );
    }
}
