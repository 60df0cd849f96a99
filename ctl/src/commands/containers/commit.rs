//! `commit`: an image of a container, for every node.

use std::collections::BTreeMap;

use roster_proto::{
    report::ImageInfo,
    wire::{self, image_change::Change},
};

use crate::{
    cli::Commit,
    client::{self, Wishes},
    commands::{all, write_out},
    compose::command_words,
    error::{Ending, Error},
};

pub(in crate::commands) async fn run(args: Commit, wishes: &Wishes) -> Result<Ending, Error> {
    let commit = wire::CommitContainer {
        image: args.image,
        message: args.message.unwrap_or_default(),
        author: args.author.unwrap_or_default(),
        changes: changes(&args.change)?,
        running: args.no_pause,
        ..Default::default()
    };
    let (mut containers, _) = client::containers(wishes).await?;
    let request = wire::CommitRequest { target: args.target, commit: Some(commit) };
    let answer = containers.commit(request).await?.into_inner();
    let images: Vec<ImageInfo> = all(answer.images)?;
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for image in images {
        nodes.entry(image.id).or_default().push(image.node.to_string());
    }
    for (id, nodes) in nodes {
        write_out(&format!("{id} on {}\n", nodes.join(", ")))?;
    }
    Ok(Ending::Done)
}

/// Each as an instruction of a Dockerfile.
fn changes(instructions: &[String]) -> Result<Vec<wire::ImageChange>, Error> {
    let mut found = Vec::new();
    for instruction in instructions {
        let read =
            change(instruction).map_err(|problem| Error::Usage(format!("--change {instruction:?}: {problem}")))?;
        found.extend(read.into_iter().map(|change| wire::ImageChange { change: Some(change) }));
    }
    Ok(found)
}

fn change(instruction: &str) -> Result<Vec<Change>, String> {
    let (name, rest) = instruction.trim().split_once(char::is_whitespace).unwrap_or((instruction.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("write an instruction of a Dockerfile and what it is to say, as CMD [\"serve\"]".to_owned());
    }
    Ok(match name.to_ascii_uppercase().as_str() {
        "CMD" => vec![Change::Cmd(program(rest)?)],
        "ENTRYPOINT" => vec![Change::Entrypoint(program(rest)?)],
        "ENV" => pairs(rest)?.into_iter().map(Change::Env).collect(),
        "LABEL" => pairs(rest)?.into_iter().map(Change::Label).collect(),
        "WORKDIR" => vec![Change::Workdir(rest.to_owned())],
        "USER" => vec![Change::User(rest.to_owned())],
        "EXPOSE" => rest.split_whitespace().map(port).collect::<Result<_, _>>()?,
        other => return Err(format!("{other} is not one of CMD, ENTRYPOINT, ENV, LABEL, WORKDIR, USER and EXPOSE")),
    })
}

/// A list as JSON, or a line for a shell.
fn program(text: &str) -> Result<wire::StringList, String> {
    let values = match text.starts_with('[') {
        true => serde_json::from_str(text).map_err(|error| format!("the list is no JSON: {error}"))?,
        false => ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
    };
    Ok(wire::StringList { values })
}

/// NAME=VALUE, several of them, or NAME and the rest of the line.
fn pairs(text: &str) -> Result<Vec<wire::NamedValue>, String> {
    let words = command_words(text)?;
    let pair = |name: &str, value: &str| wire::NamedValue { name: name.to_owned(), value: value.to_owned() };
    if let Some((name, value)) = text.split_once(char::is_whitespace).filter(|(name, _)| !name.contains('=')) {
        return Ok(vec![pair(name, value.trim())]);
    }
    let read = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(pair(name, value)),
        _ => Err(format!("{word:?} is not NAME=VALUE")),
    };
    words.iter().map(read).collect()
}

fn port(text: &str) -> Result<Change, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match (number.parse::<u16>(), protocol) {
        (Ok(number @ 1..), "tcp" | "udp" | "sctp") => Ok(Change::Expose(format!("{number}/{protocol}"))),
        _ => Err(format!("{text:?} is not a port, as 80 or 53/udp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(values: &[&str]) -> wire::StringList {
        wire::StringList { values: values.iter().map(ToString::to_string).collect() }
    }

    fn pair(name: &str, value: &str) -> wire::NamedValue {
        wire::NamedValue { name: name.into(), value: value.into() }
    }

    #[test]
    fn instructions_are_read_as_in_a_dockerfile() {
        let one = |text: &str| change(text).expect("it is right");
        assert_eq!(one(r#"CMD ["serve", "-p", "80"]"#), [Change::Cmd(words(&["serve", "-p", "80"]))]);
        assert_eq!(one("cmd serve && wait"), [Change::Cmd(words(&["/bin/sh", "-c", "serve && wait"]))]);
        assert_eq!(one("ENTRYPOINT []"), [Change::Entrypoint(words(&[]))]);
        assert_eq!(one("ENV A=1 B='two words'"), [Change::Env(pair("A", "1")), Change::Env(pair("B", "two words"))]);
        assert_eq!(one("ENV A one = two"), [Change::Env(pair("A", "one = two"))]);
        assert_eq!(one("LABEL made.by=us"), [Change::Label(pair("made.by", "us"))]);
        assert_eq!(one("WORKDIR /srv"), [Change::Workdir("/srv".into())]);
        assert_eq!(one("USER app:app"), [Change::User("app:app".into())]);
        assert_eq!(one("EXPOSE 80 53/udp"), [Change::Expose("80/tcp".into()), Change::Expose("53/udp".into())]);
        for wrong in ["", "CMD", "CMD [x", "RUN make", "ENV =x", "ENV 'A", "EXPOSE 0", "EXPOSE 80/http", "EXPOSE web"] {
            assert!(change(wrong).is_err(), "{wrong}");
        }
    }
}
