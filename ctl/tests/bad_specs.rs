//! What a person reads about specs that are wrong, each in its own way: the whole text, kept as snapshots.

use std::{collections::BTreeMap, path::Path};

use rctl::compose::{Options, load};

/// Every file in `tests/bad`, one snapshot each. A spec there that loads fails the test.
#[test]
fn every_bad_spec_says_what_is_wrong() {
    let mut paths: Vec<_> = std::fs::read_dir("tests/bad")
        .expect("the folder of bad specs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 40, "only {} bad specs found", paths.len());
    for path in paths {
        let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
        let options = Options {
            project_name: None,
            environment: BTreeMap::from([("HOME".to_owned(), "/home/user".to_owned())]),
            env_file: None,
        };
        let text = match load(&path, &options) {
            Ok(loaded) => panic!("{} was read: {loaded:#?}", path.display()),
            Err(problems) => {
                for problem in &problems.found {
                    assert!(problem.help.is_some(), "{name} does not say what to do: {problem}");
                }
                problems.to_string()
            }
        };
        // Relative paths only: the text is the same on every machine.
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{text}");
        insta::with_settings!({ snapshot_path => "bad", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, text);
        });
    }
}

#[test]
fn a_missing_file_a_folder_and_an_env_file_that_is_not_there() {
    let read = |path: &str, env_file: Option<&str>| {
        let options = Options { env_file: env_file.map(|path| Path::new(path).to_owned()), ..Options::default() };
        load(Path::new(path), &options).expect_err("nothing to read").to_string()
    };
    insta::assert_snapshot!(read("tests/nowhere.yaml", None), @r"
    error: cannot read tests/nowhere.yaml: No such file or directory (os error 2)
     = help: check the path

    1 error; nothing was changed
    ");
    insta::assert_snapshot!(read("tests/bad", None), @r"
    error: cannot read tests/bad: Is a directory (os error 21)
     = help: name the file in it, for example its spec.yaml

    1 error; nothing was changed
    ");
    insta::assert_snapshot!(read("tests/bad/many.yaml", Some("tests/nowhere.env")).lines().next().unwrap_or_default(),
        @"error: cannot read tests/nowhere.env: No such file or directory (os error 2)");
}
