"""Frames survive being cut anywhere, and damage is noticed before it is allocated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.state import ErrorInfo, Outcome, Output
from actionqueue.executors import frames
from actionqueue.executors.frames import Begun, Ended, FrameBuffer, FrameError, Ready, Reported, encode, to_parent

FINISH = Finish(
    b"r" * 16, b"a" * 16, 7, Outcome.FAILED, b"body", Output(b"d" * 16, 4), ErrorInfo("KeyError", "x"), terminal=True,
    delay_us=5, draw=0.25, reason="worker_died",
)  # fmt: skip

said = st.lists(
    st.one_of(
        st.builds(Ready, st.integers(0, 9), st.none() | st.text()),
        st.builds(Begun, st.binary(max_size=20)),
        st.builds(lambda done, text: Reported(Progress(b"r", b"a", 1, done, None, text)), st.integers(0), st.text()),
        st.just(Ended(FINISH, interrupted=True, rss_bytes=9)),
    )
)


@given(said, st.integers(1, 40))
def test_frames_arrive_whole_however_the_bytes_are_cut(sent: list[frames.ToParent], size: int) -> None:
    data = b"".join(encode(frame) for frame in sent)
    buffer = FrameBuffer()

    received = [
        to_parent.decode(body)
        for start in range(0, len(data), size)
        for body in list(buffer.feed(data[start : start + size]))
    ]

    assert received == sent


def test_a_length_over_the_limit_is_refused_without_waiting_for_its_bytes() -> None:
    buffer = FrameBuffer()

    with pytest.raises(FrameError, match="FRAME_BYTES_MAX"):
        list(buffer.feed(b"\xff\xff\xff\xff"))


def test_a_frame_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 10)

    with pytest.raises(FrameError, match="FRAME_BYTES_MAX"):
        encode(Begun(b"x" * 20))
