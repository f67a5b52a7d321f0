"""What is sent and answered, as pydantic checks it and OpenAPI describes it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Name = Annotated[str, Field(max_length=1000)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GradeRequest(_Sent):
    """Inputs to grade: images, or texts."""

    images: Annotated[list[str], Field(fail_fast=True)] | None = Field(None, description="Image files in base64.")
    texts: Annotated[list[str], Field(fail_fast=True)] | None = None


class DialRequest(_Sent):
    """One input, and strengths of the adapter."""

    image: str | None = Field(None, description="An image file in base64.")
    text: str | None = None
    alphas: Annotated[list[Annotated[FiniteFloat, Field(ge=-4, le=4)]], Field(fail_fast=True)] = Field(
        min_length=1, max_length=64, description="0 is the model, 1 the second opinion."
    )


class LabelRequest(_Sent):
    """What a person said of one input."""

    image: str | None = Field(None, description="The image file in base64.")
    text: str | None = None
    input: Name | None = Field(None, description="What the input is called.")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Of the image file, or of the text in UTF-8."
    )
    label: int | None = Field(None, ge=0, description="The class; null takes back what was said before.")
    label_name: Name | None = None
    confirmed: bool = Field(False, description="Whether it is what the model says.")
    predicted: int | None = None
    second: int | None = None
    probability: FiniteFloat | None = None
    suspicion: FiniteFloat | None = None
    grade: Literal["trusted", "suspect", "unreadable"] | None = None


class Grade(BaseModel):
    """The grade of one input; where it is unreadable, all but ``input`` and ``reason`` is null."""

    input: str | None
    label: int | None
    label_name: str | None
    second: int | None
    second_name: str | None
    probability: float | None = Field(description="Of an error, calibrated.")
    suspicion: float | None
    grade: Literal["trusted", "suspect", "unreadable"]
    reason: str | None = Field(description="Why the input could not be read.")
    base: list[float] | None = Field(None, description="the model's probabilities by class, where opinions=true.")
    opinion: list[float] | None = Field(None, description="The second opinion's.")


class GradeAnswer(BaseModel):
    """One grade an input, in the order sent."""

    grades: list[Grade]


class DialAnswer(BaseModel):
    """The probabilities of the classes at each strength of the adapter."""

    alphas: list[float]
    probabilities: list[list[float]]


class About(BaseModel):
    """What is served."""

    inputs: Literal["images", "texts"]
    classes: list[str]
    size: tuple[int, int] | None = Field(description="Height and width that images are resized to.")
    channels: int | None
    threshold: dict[str, Any] = Field(description="Where suspicion turns, and what that guarantees, in words.")
    score: str
    sweep: bool
    labels: bool
    limits: dict[str, float]
    version: str


class Labels(BaseModel):
    """What was said of inputs, the oldest first."""

    labels: list[dict[str, Any]]


class Fault(BaseModel):
    """Why a request was not answered."""

    detail: str
