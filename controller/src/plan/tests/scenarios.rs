//! One test a scenario; the golden output lies in `snapshots/`.

use super::scenario::play;

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!("../scenarios/", stringify!($name), ".txt"));
                insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                    insta::assert_snapshot!(stringify!($name), play(text));
                });
            }
        )*
    };
}

scenarios! {
    brake
    brake_by_hand
    brake_nodes_return
    create_and_scale
    down_before_start
    drain_and_pause
    drain_fits_nowhere
    drain_some_at_once
    drain_start_first
    drain_start_first_fails
    gives_up
    global
    history_is_bounded
    host_ports
    jobs_finish
    no_node
    node_down_alone
    node_down_moves
    node_down_while_stopping
    old_reports
    once_fails_for_good
    one_off
    one_off_loses_its_node
    one_off_is_removed
    only_what_changed
    other_runtime
    ports_in_host_network
    preview
    rejected_backs_off
    removal
    removal_undone
    remove_node
    remove_node_singleton
    reservations
    restart_backoff
    restart_backoff_is_capped
    restart_delay_zero
    restart_of_what_ended
    restart_on_a_lost_node
    restart_one
    restart_rolls
    restart_singleton
    restart_start_first
    restart_then_update
    rollout_all_at_once
    rollout_fixes_a_bad_one
    rollout_held_by_failures
    rollout_parallel_with_delay
    rollout_start_first
    rollout_start_first_changes_its_mind
    rollout_start_first_fails
    rollout_start_first_loses_its_node
    rollout_start_first_loses_its_old_node
    rollout_stop_first
    singleton
    singleton_is_updated
    singleton_loses_its_lease
    singleton_returns
    sharing
    sharing_follows
    sharing_global
    spread
}
