"""What an objective asks of a step; loader, splits, checks and trainer ask this, never a method's name."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Needs:
    """All that the objectives of a method ask for together is :meth:`__or__` of what each asks for."""

    #: Pseudo labels of unlabelled images.
    unlabeled: bool = False
    #: Independent strong views of each unlabelled image that the student is trained on.
    strong_views: int = 0
    #: A network that predicts masks.
    masks: bool = False
    #: Regions of the strong views matched with the student's queries.
    matches: bool = False
    #: Entropy of the pseudo labels.
    entropy: bool = False
    #: Strong views that no other image is pasted into.
    unmixed: bool = False
    #: The student's output on the weak view with half of the channels of the encoder's features dropped (UniMatch).
    perturbed: bool = False
    #: Of two strong views' encoder features, complementary halves of the channels (UniMatch V2).
    complementary: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            **{field.name: max(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        )


#: What most semi-supervised methods ask of the data.
BOTH_STREAMS = Needs(unlabeled=True, strong_views=1)
