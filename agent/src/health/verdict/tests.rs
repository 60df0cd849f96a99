use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn check(retries: u32, start_period: u64) -> Check {
    Check {
        command: vec!["true".into()],
        interval: SECOND,
        timeout: SECOND,
        retries,
        start_period: Duration::from_secs(start_period),
        start_interval: SECOND / 10,
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(0).plus(Duration::from_secs(seconds))
}

/// Feeds `+` and `-` at one a second from second 1 on, and tells the health after each.
fn healths(check: &Check, probes: &str) -> String {
    let mut verdict = Verdict::new(at(0));
    let letter = |health| match health {
        Health::None => '?',
        Health::Starting => 's',
        Health::Healthy => 'h',
        Health::Unhealthy => 'U',
    };
    let mut told = String::new();
    for (second, probe) in (1..).zip(probes.chars()) {
        let before = verdict.health();
        let finding = Finding { passed: probe == '+', output: format!("at {second}") };
        let changed = verdict.observe(check, finding, at(second));
        assert_eq!(changed, before != verdict.health());
        told.push(letter(verdict.health()));
    }
    told
}

#[test]
fn probes_add_up_to_a_health() {
    assert_eq!(healths(&check(3, 0), "---"), "ssU");
    assert_eq!(healths(&check(3, 0), "--+--"), "sshhh");
    assert_eq!(healths(&check(1, 0), "+-"), "hU");
    // Failures within the first five seconds do not count ...
    assert_eq!(healths(&check(2, 5), "------"), "sssssU");
    // ... unless it was healthy before.
    assert_eq!(healths(&check(2, 60), "-+--"), "shhU");
}

#[test]
fn the_last_failure_is_told() {
    let mut verdict = Verdict::new(at(0));
    for second in 1..=2 {
        verdict.observe(&check(2, 0), Finding { passed: false, output: format!("at {second}") }, at(second));
    }
    assert_eq!((verdict.failures(), verdict.output()), (2, "at 2"));
}

#[test]
fn probes_come_faster_in_the_start_period() {
    let mut verdict = Verdict::new(at(0));
    assert_eq!(verdict.pause(&check(3, 5), at(0)), SECOND / 10);
    assert_eq!(verdict.pause(&check(3, 5), at(5)), SECOND);
    verdict.observe(&check(3, 5), Finding { passed: true, output: String::new() }, at(1));
    assert_eq!(verdict.pause(&check(3, 5), at(1)), SECOND);
}

#[test]
fn the_spec_goes_over_the_image_and_both_over_the_defaults() {
    let image = Healthcheck {
        test: HealthTest::Command(vec!["image".into()]),
        interval: Some(SECOND * 7),
        retries: Some(9),
        ..Healthcheck::default()
    };
    let of = |test| Healthcheck { test, retries: Some(2), interval: Some(Duration::ZERO), ..Healthcheck::default() };

    let inherited = resolve(Some(&of(HealthTest::Inherit)), Some(&image)).unwrap();
    assert_eq!(inherited.command, ["image"]);
    assert_eq!((inherited.interval, inherited.retries, inherited.timeout), (SECOND * 7, 2, SECOND * 30));
    let shell = resolve(Some(&of(HealthTest::Shell("exit 1".into()))), Some(&image)).unwrap();
    assert_eq!(shell.command, ["/bin/sh", "-c", "exit 1"]);
    assert_eq!(resolve(None, Some(&image)).unwrap().retries, 9);
    assert_eq!(resolve(Some(&of(HealthTest::Disabled)), Some(&image)), None);
    assert_eq!(resolve(Some(&of(HealthTest::Inherit)), None), None);
    assert_eq!(resolve(None, None), None);
}
