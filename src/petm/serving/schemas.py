"""Bodies of requests and answers, as pydantic checks them and OpenAPI describes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Name = Annotated[str, Field(max_length=1000)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GradeRequest(_Sent):
    """Inputs to grade: images, or texts."""

    images: Annotated[list[str], Field(fail_fast=True)] | None = Field(None, description="Image files in base64.")
    texts: Annotated[list[str], Field(fail_fast=True)] | None = None


class SweepRequest(_Sent):
    """One input, and strengths of the second opinion."""

    image: str | None = Field(None, description="An image file in base64.")
    text: str | None = None
    alphas: Annotated[list[Annotated[FiniteFloat, Field(ge=-4, le=4)]], Field(fail_fast=True)] = Field(
        min_length=1, max_length=64, description="0 is the model, 1 the second opinion."
    )


class LabelRequest(_Sent):
    """A person's label of one input."""

    image: str | None = Field(None, description="The image file in base64.")
    text: str | None = None
    input: Name | None = Field(None, description="Name of the input.")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Hash of the image file or UTF-8 text.")
    label: Number | None = Field(None, description="The class; null takes back what was decided before.")
    decision: Literal["cannot tell"] | None = Field(None, description="Beside a label of null: nobody can tell.")
    label_name: Name | None = Field(None, description="The name of the class, where the sender knows it.")
    confirmed: bool = Field(False, description="Whether the label is the model's prediction.")
    predicted: Number | None = None
    second: Number | None = None
    probability_of_error: FiniteFloat | None = None
    confidence: FiniteFloat | None = None
    suspicion: FiniteFloat | None = None
    grade: Literal["trusted", "suspect", "unreadable"] | None = None
    chance: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(None, description="As in the grade.")
    audit: bool | None = Field(None, description="As in the grade; only so do labels of the trusted count in /metrics.")


class Grade(BaseModel):
    """The grade of one input; where it is unreadable, all but ``input`` and ``reason`` is null."""

    input: str | None
    label: int | None
    label_name: str | None
    second: int | None = Field(description="Null where no second opinion was asked for.")
    second_name: str | None
    probability_of_error: float | None = Field(description="Calibrated probability that the label is wrong.")
    confidence: float | None = Field(description="Calibrated probability that the label is right.")
    suspicion: float | None
    grade: Literal["trusted", "suspect", "unreadable"]
    candidates: list[str] | None = Field(
        description="Classes that it may be, the most probable first; null where the grader has no prediction sets."
    )
    reason: str | None = Field(description="Why the input could not be read.")
    base: list[float] | None = Field(None, description="The model's probabilities by class, where opinions=true.")
    opinion: list[float] | None = Field(None, description="The second opinion's, null where none was asked for.")
    chance: float | None = Field(None, description="Chance of being reviewed, where the service draws an audit.")
    audit: bool | None = Field(None, description="Whether it is trusted and drawn for the audit.")


class GradeAnswer(BaseModel):
    """One grade an input, in the order sent."""

    grades: list[Grade]


class SweepAnswer(BaseModel):
    """The probabilities of the classes at each strength of the second opinion."""

    alphas: list[float]
    probabilities: list[list[float]]


class About(BaseModel):
    """What is served."""

    inputs: Literal["images", "texts"]
    classes: list[str]
    size: tuple[int, int] | None = Field(description="Height and width that images are resized to.")
    channels: int | None
    threshold: dict[str, Any] = Field(description="The threshold on suspicion, and its guarantee in words.")
    score: str
    second_opinion: bool = Field(description="Whether there is one; without, ``second`` and ``opinion`` are null.")
    sweep: bool = Field(description="Whether the strength of the second opinion can be set.")
    labels: bool
    queue: bool = Field(description="Whether there is a review queue.")
    audit: float | None = Field(description="Chance of each trusted input to be drawn for review.")
    limits: dict[str, float]
    version: str


class Labels(BaseModel):
    """All labels, the oldest first."""

    labels: list[dict[str, Any]]


class QueueEntry(BaseModel):
    """One input to review: its position in the queue, by which ``/queue/{number}`` has its content, and its name."""

    number: int
    input: str
    given: str | None = Field(None, description="The label in the data set, where labels are reviewed.")
    suggested: str | None = Field(None, description="The class that is probably right instead.")


class QueueAnswer(BaseModel):
    """Inputs of the queue that are not decided, some at a time."""

    total: int
    decided: int
    lost: int = Field(description="Inputs that are gone or changed.")
    items: list[QueueEntry]
    next: int | None = Field(description="The start of the next request; null at the end.")


class Fault(BaseModel):
    """Why a request was not answered."""

    detail: str
