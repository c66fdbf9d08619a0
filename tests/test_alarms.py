"""An alarm speaks once each time there is something to say, and says what to do."""

from grit_lite.alarms import DeadSignalAlarm, SamplerGapAlarm


def dead(step):
    return {"step": step, "groups_that_teach": 0.0, "reward": 0.0}


def test_the_alarm_rings_once_when_no_group_has_varied_for_long_enough():
    alarm = DeadSignalAlarm(patience=3)
    rung = [alarm.after(dead(step)) for step in range(1, 6)]
    assert [message is not None for message in rung] == [False, False, True, False, False]
    assert "raise temperature or group_size" in rung[2]


def test_one_group_that_teaches_silences_the_alarm():
    alarm = DeadSignalAlarm(patience=2)
    alarm.after(dead(1))
    alarm.after({"step": 2, "groups_that_teach": 0.25, "reward": 0.5})
    assert alarm.after(dead(3)) is None
    assert alarm.after(dead(4)) is not None


def test_the_gap_of_the_sampler_is_announced_once_it_is_more_than_rounding():
    alarm = SamplerGapAlarm()
    said = [alarm.after({"sampler_gap": gap}) for gap in (None, 0.05, 0.4, 0.5)]
    assert [message is not None for message in said] == [False, False, True, False]
    assert "0.40 nats away" in said[2]
    assert "set vllm=off" in said[2]
