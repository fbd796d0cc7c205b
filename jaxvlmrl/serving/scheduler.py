"""Requests through the compiled rows: whoever waits gets the next free row, all rows read and draw together.

One step is: free rows are filled, then either every row that has something to read reads a chunk of it, or every row that is
ready draws a piece of its answer. Reading goes first, so that rows that came together draw together, but not for long: a
long conversation does not keep the others from answering. `run` does steps in a thread of its own; `drain` in the caller's.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from jaxvlmrl.policy import Policy
from jaxvlmrl.serving.conversations import Block, Dialogue, Kept, Turn, name_of, said_after
from jaxvlmrl.serving.errors import RequestError
from jaxvlmrl.serving.planning import Plan, plan_of
from jaxvlmrl.serving.programs import NOTHING, START, Chunk, Drawing, Programs, slot_of
from jaxvlmrl.serving.rows import Event, Job, Row, Token
from jaxvlmrl.serving.transcript import Transcript
from jaxvlmrl.serving.wording import Wording

STOPPED = "the server has stopped answering"
CHUNKS_BEFORE_DRAWING = 4  # at most, while a row is ready
log = logging.getLogger("jaxvlmrl.serve")


class Scheduler:
    """Jobs in, events out."""

    def __init__(self, programs: Programs, wording: Wording, kept: Kept):
        self.programs, self.wording, self.kept = programs, wording, kept
        self.policy: Policy = programs.policy
        self._rows: list[Row | None] = [None] * programs.sizes.rows
        self._state = programs.empty()
        self._waiting: deque[Job] = deque()
        self._entering: list[Job] = []  # neither waiting any more nor in a row yet
        self._wake = threading.Condition()
        self._is_stopping = False
        self._chunks = 0  # read since something was drawn

    # From other threads

    def submit(self, jobs: Iterable[Job]) -> None:
        with self._wake:
            if self._is_stopping:
                raise RequestError(STOPPED, status=503)
            self._waiting.extend(jobs)
            self._wake.notify()

    def stop(self) -> None:
        """`run` ends after the step under way."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()

    @property
    def is_stopping(self) -> bool:
        """Nothing is taken any more."""
        return self._is_stopping

    def run(self) -> None:
        """Steps until `stop`, or until it cannot start anew; then an error for all that is not answered."""
        try:
            while self._has_work():
                if not self._stepped():
                    del self._state  # first: the device may have no room for two
                    self._state = self.programs.empty()
        except Exception:
            log.exception("the engine cannot go on")
        finally:
            with self._wake:
                self._is_stopping = True
                self._entering += self._waiting
                self._waiting.clear()
            self._fail(RequestError(STOPPED, status=503))

    def _has_work(self) -> bool:
        """Waits for it; False where there will be none."""
        with self._wake:
            self._wake.wait_for(lambda: self._is_stopping or self._waiting or any(self._rows))
            return not self._is_stopping

    def _stepped(self) -> bool:
        """Whether a step went well. The error is gone on return: it holds on to the state."""
        try:
            self.step()
        except Exception:
            log.exception("a step of the engine failed; the requests in it are answered with an error")
            self._fail(RequestError("the engine failed on this batch of requests", status=500))
            return False
        return True

    def drain(self) -> None:
        """Steps until nothing is left to do."""
        while self._waiting or any(self._rows):
            self.step()

    def _fail(self, error: RequestError) -> None:
        """Those who wait can still be answered."""
        jobs = [row.job for row in self._rows if row] + self._entering
        self._rows, self._entering = [None] * len(self._rows), []
        for job in jobs:
            job.emit(Event(error=error))

    # One step

    def step(self) -> None:
        self._rows = [row if row and not row.job.is_cancelled else None for row in self._rows]
        self._admit()
        ready = [row is not None and not row.parts for row in self._rows]
        reading = [row is not None and bool(row.parts) for row in self._rows]
        if any(reading) and (self._chunks < CHUNKS_BEFORE_DRAWING or not any(ready)):
            self._chunks += 1
            self._read()
        elif any(ready):
            self._chunks = 0
            self._draw()

    def _admit(self) -> None:
        free = [index for index, row in enumerate(self._rows) if row is None]
        plans: list[Plan] = []
        dialogue: Dialogue | None = None
        while len(plans) < len(free) and (job := self._next_job()):
            if job.dialogue is not dialogue:  # a request's choices come one after the other
                dialogue, planned = job.dialogue, self._planned(job)
            if isinstance(planned, RequestError):
                job.emit(Event(error=planned))
            else:
                plans.append(planned._replace(job=job))
                self._entering.append(job)
        pictures = {p.digest: p.pixels for plan in plans for part in plan.pictures for p in part}
        seen = dict(zip(pictures, self.programs.see(list(pictures.values()))))
        for index, plan in zip(free, plans):
            self._enter(index, plan, seen)
            self._entering.remove(plan.job)

    def _planned(self, job: Job) -> Plan | RequestError:
        try:
            return plan_of(job, self.programs, self.wording, self.kept)
        except RequestError as error:
            return error
        except Exception:
            log.exception("a conversation could not be laid out")
            return RequestError("the server failed on this request", status=500)

    def _next_job(self) -> Job | None:
        with self._wake:
            while self._waiting:
                job = self._waiting.popleft()
                if not job.is_cancelled:
                    return job
        return None

    def _enter(self, index: int, plan: Plan, seen: dict[bytes, np.ndarray]) -> None:
        """The job into a free row, with what is kept of its conversation."""
        lengths, turns = plan.kept_lengths, plan.kept_turns
        kv = np.concatenate([block.kv for block in plan.kept], axis=3) if plan.kept else self.programs.no_tokens()
        self._state = self.programs.place(self._state, index, kv, np.repeat(np.asarray(turns, np.int32), lengths))
        parts = [
            part._replace(image_x=np.concatenate([seen[p.digest] for p in pictures])) if pictures else part
            for part, pictures in zip(plan.parts, plan.pictures)
        ]
        chat, sampling = self.policy.chat, plan.job.sampling
        transcript = Transcript(chat.tokenizer, chat.end_id, sampling.stop)
        self._rows[index] = Row(
            plan.job, plan.names, plan.heard, transcript, parts, plan.spans(), plan.pinned, sum(lengths), 0,
            plan.usage(self.policy.window), plan.budget, plan.heard.seed(sampling.seed),
        )  # fmt: skip

    # Reading

    def _read(self) -> None:
        chunk = self._empty_chunk()
        for index, row in enumerate(self._rows):
            if row and row.parts:
                self._fill(chunk, index, row)
        self._state = self.programs.read(self._state, chunk)

    def _empty_chunk(self) -> Chunk:
        rows, length, slots = self.programs.sizes.rows, self.programs.sizes.chunk, self.programs.sizes.slots
        zeros: Callable[..., np.ndarray] = lambda *more, dtype=np.int32: np.zeros((rows, *more), dtype)
        axes = self.policy.model.image_positions()[0].shape[1:]
        return Chunk(
            zeros(length), zeros(length, dtype=np.bool_), zeros(length, self.programs.image_width, dtype=np.float32),
            zeros(length, *axes), zeros(length) + NOTHING, zeros(length) + slots, zeros(), zeros(dtype=np.bool_),
        )  # fmt: skip

    def _fill(self, chunk: Chunk, index: int, row: Row) -> None:
        """The next tokens of a row, at the chunk's end; the row moves on."""
        part, sizes = row.parts[0], self.programs.sizes
        end = min(row.offset + sizes.chunk, len(part.ids))
        count, taken = end - row.offset, slice(row.offset, end)
        if count:
            to = (index, slice(sizes.chunk - count, sizes.chunk))
            numbers = np.arange(row.number, row.number + count, dtype=np.int32)
            is_image = part.is_image[taken]
            chunk.ids[to], chunk.is_image[to], chunk.positions[to] = part.ids[taken], is_image, part.positions[taken]
            chunk.number[to], chunk.slot[to] = numbers, slot_of(numbers, row.pinned, sizes.slots)
            images = row.images_read + int(is_image.sum())
            chunk.image_x[to][is_image] = part.image_x[row.images_read : images]
            row.images_read = images
        chunk.turn[index] = part.turn
        row.offset, row.number = end, row.number + count
        if end == len(part.ids):
            row.parts.pop(0)
            row.position, row.offset, row.images_read = part.next_position, 0, 0
            chunk.begins_answer[index] = not row.parts

    # Drawing

    def _draw(self) -> None:
        rows = [(index, row) for index, row in enumerate(self._rows) if row and not row.parts]
        self._state, piece = self.programs.draw(self._state, self._drawing(rows))
        for index, row in rows:
            count = int(piece.valid[index].sum())
            tokens = []
            for at in range(count):
                if row.transcript.is_ended:
                    break
                wanted = row.job.sampling.likeliest
                best = zip(piece.top_ids[index, at, :wanted].tolist(), piece.top_log_probs[index, at, :wanted].tolist())
                token = Token(int(piece.ids[index, at]), float(piece.log_prob[index, at]), list(best))
                row.transcript.add(token.id)
                tokens.append(token)
            row.drawn, row.number, row.position = row.drawn + count, row.number + count, row.position + count
            self._tell(index, row, tuple(tokens))

    def _drawing(self, rows: list[tuple[int, Row]]) -> Drawing:
        size = self.programs.sizes.rows
        zeros: Callable[..., np.ndarray] = lambda dtype=np.int32: np.zeros(size, dtype)
        drawing = Drawing(
            zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(np.float32), np.ones(size, np.float32),
            zeros(np.uint32), zeros(np.bool_),
        )  # fmt: skip
        for index, row in rows:
            asked = row.job.sampling
            values = (
                row.budget - row.drawn, row.number, row.position, row.turn, row.pinned, row.drawn, asked.temperature,
                asked.top_p, row.seed, asked.likeliest > 0,
            )  # fmt: skip
            for array, value in zip(drawing, values, strict=True):
                array[index] = value
        return drawing

    def _tell(self, index: int, row: Row, tokens: tuple[Token, ...]) -> None:
        """What was drawn to whoever waits for it; the row is free if that was all."""
        is_ended, is_full = row.transcript.is_ended, row.drawn >= row.budget
        text = row.transcript.take(is_last=is_full)
        if not (is_ended or is_full):
            row.job.emit(Event(text, tokens))
            return
        self._rows[index] = None
        usage = row.usage._replace(answer=len(row.transcript.ids))
        row.job.emit(Event(text, tokens, "stop" if is_ended else "length", usage))
        try:
            self._keep(index, row)
        except Exception:
            log.exception("a conversation could not be kept; its next turn is read from further back")

    def _keep(self, index: int, row: Row) -> None:
        """The turns that a next one would see, and the start, into the cache."""
        names, spans, ids = list(row.names), row.spans[:-1], row.transcript.ids
        said = said_after(names[-1], Turn(row.heard.turns[-1].content, row.transcript.text))
        # Where a stop text ended it, what was drawn is not what was answered.
        if not row.transcript.met_stop and self.kept.put_answer(said, ids):
            names.append(name_of(said, ids))
            is_cut = ids[-1] != self.policy.chat.end_id
            spans.append(row.spans[-1]._replace(end=row.number, position=row.position, is_cut=is_cut))
        in_sight = lambda turn: turn == START or turn > row.turn - self.policy.window
        wanted = [span for span in spans if in_sight(span.turn)]
        if not wanted:
            return
        kv, blocks = self.programs.fetch(self._state, index), {}
        for span in wanted:
            slots = slot_of(np.arange(span.first, span.end), row.pinned, self.programs.sizes.slots)
            blocks[names[span.turn]] = Block(kv[..., slots, :], span.position, span.is_cut)
        self.kept.put([name for turn, name in enumerate(names) if in_sight(turn)], blocks)
