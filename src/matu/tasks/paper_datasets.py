"""The thirty datasets of the paper, in the order in which EMR-Merging lists them.

Class counts come from the class lists of fusion_bench (marked `fb`), the card or viewer of the hub dataset
(`hub`), the catalogue of TensorFlow Datasets (`tfds`), the source's own page (`page`), or from memory alone
(`memory`: checked only when the data is loaded). Sources are those of EMR-Merging's own list of its thirty
datasets, of which the paper takes the suite; hub datasets are those that fusion_bench loads.
"""

from dataclasses import dataclass

EIGHT = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")

OWN = "the source's own"
FIFTH = "the source has none and the paper states none: of each class's files in sorted order every fifth is test"


@dataclass(frozen=True)
class PaperDataset:
    """A dataset of the paper; None stands for what is not stated."""

    name: str
    """The task's name, and its folder's."""
    classes: int | None
    source: str
    """Where it comes from: a hub reference (`hub:...`), a Kaggle slug, a DOI, a page."""
    licence: str | None = None
    train: int | None = None
    test: int | None = None
    """Images of either split, where the source has one."""
    split: str = OWN
    """How the images come to be training and test images."""
    hub_splits: tuple[str, str] = ("train", "test")
    """The hub dataset's splits for training and test."""
    columns: tuple[str, str] | None = None
    """The hub dataset's image and label column; None: chosen by type, then by name."""

    @property
    def hub(self) -> str | None:
        """Hub reference, `owner/name[/config]`."""
        return self.source.removeprefix("hub:") if self.source.startswith("hub:") else None

    @property
    def obtain(self) -> str:
        """One sentence on how to get it."""
        kind, _, rest = self.source.partition(" ")
        if self.hub:
            return f"{self.source} is fetched by itself where the hub can be reached"
        if kind == "Kaggle":
            slug, _, note = rest.partition(" ")
            return f"kaggle datasets download {slug} --unzip (an account there is needed) {note}".rstrip()
        return f"download it by hand: {self.source}"


DATASETS = (
    # fb; card mit (TensorFlow's page says CC BY-SA 3.0)
    PaperDataset("mnist", 10, "hub:ylecun/mnist", "MIT by its hub card", 60_000, 10_000),
    # fb; sizes tfds
    PaperDataset("cifar10", 10, "hub:tanganke/cifar10", None, 50_000, 10_000),
    # memory; a third part, validation, is left out
    PaperDataset("vegetables", 15, "Kaggle misrakahmed/vegetable-image-dataset", None, 15_000, 3_000),
    # fb, hub; the hub's test part is called validation
    PaperDataset(
        "food101",
        101,
        "hub:ethz/food101",
        "images of Foodspotting, scientific fair use, by its hub card",
        75_750,
        25_250,
        hub_splits=("train", "validation"),
    ),
    # page: three landmarks, three findings, two of polyp removal; 8,000 images from memory
    PaperDataset("kvasir_v2", 8, "kvasir-dataset-v2.zip, https://datasets.simula.no/kvasir", split=FIFTH),
    # page: a tutorial on it (6 classes, 14k and 3k); exact sizes from memory
    PaperDataset(
        "intel_images",
        6,
        "Kaggle puneet6060/intel-image-classification",
        None,
        14_034,
        3_000,
        "the source's own: seg_train and seg_test; seg_pred has no labels and is left out",
    ),
    # fb, hub; the hub copy's splits of distorted images are left out
    PaperDataset("stanford_cars", 196, "hub:tanganke/stanford_cars", None, 8_144, 8_041),
    # fb, hub: 43.2k rows are train and eight times test
    PaperDataset("eurosat", 10, "hub:tanganke/eurosat", "MIT by the cards of other hub copies", 21_600, 2_700),
    # page: the abstract of its paper (11 kinds)
    PaperDataset("weather11", 11, "https://doi.org/10.7910/DVN/M8JQCR (Harvard Dataverse)", split=FIFTH),
    # memory: 25,000 labelled images
    PaperDataset(
        "cats_dogs",
        2,
        "https://www.kaggle.com/competitions/dogs-vs-cats (train.zip; an account there is needed)",
        split="the source's test images have no labels: of each class's files in sorted order every fifth is test",
    ),
    # fb; AgML: 4,000 images
    PaperDataset("mango_leaf_bd", 8, "https://data.mendeley.com/datasets/hxsnvwty3r/1", split=FIFTH),
    # hub: card; its validation part is left out; of its columns the labels are `labels`
    PaperDataset("beans", 3, "hub:AI-Lab-Makerere/beans", "MIT by its hub card", 1_034, 128),
    # fb, hub; the fine labels, found as `fine_label` or `label`
    PaperDataset("cifar100", 100, "hub:tanganke/cifar100", None, 50_000, 10_000),
    # fb, hub; other copies have 39,209 training images
    PaperDataset("gtsrb", 43, "hub:tanganke/gtsrb", None, 26_640, 12_630),
    # fb, hub, tfds; the split `extra` is left out
    PaperDataset(
        "svhn", 10, "hub:ufldl-stanford/svhn/cropped_digits", "custom, non-commercial, by its hub card", 73_257, 26_032
    ),
    # tfds
    PaperDataset(
        "dogs120",
        120,
        "images.tar and lists.tar, http://vision.stanford.edu/aditya86/ImageNetDogs/",
        None,
        12_000,
        8_580,
        "the source's own: train_list.mat and test_list.mat",
    ),
    # fb, hub
    PaperDataset("fashion_mnist", 10, "hub:zalando-datasets/fashion_mnist", "MIT by its hub card", 60_000, 10_000),
    # fb, hub: two columns of labels, breed and cat or dog; sizes tfds
    PaperDataset(
        "oxford_pet",
        37,
        "hub:timm/oxford-iiit-pet",
        "CC BY-SA 4.0 by its hub card",
        3_680,
        3_669,
        columns=("image", "label"),
    ),
    # memory
    PaperDataset(
        "landscape",
        5,
        "Kaggle utkarshsaxenadn/landscape-recognition-image-dataset-12k-images",
        None,
        10_000,
        500,
        "the source's own: Training Data and Testing Data; Validation Data is left out",
    ),
    # page: a project on it (5 classes, 4,242 images)
    PaperDataset("flowers5", 5, "Kaggle alxmamaev/flowers-recognition", split=FIFTH),
    # fb, hub; sizes tfds
    PaperDataset("stl10", 10, "hub:tanganke/stl10", None, 5_000, 8_000),
    # fb; sizes: viewer of the copy hub:Donghyun99/CUB-200-2011
    PaperDataset(
        "cub200",
        200,
        "http://www.vision.caltech.edu/datasets/cub_200_2011/",
        None,
        5_994,
        5_794,
        "the source's own: train_test_split.txt",
    ),
    # which of EMNIST's six sets is not stated, hence neither the number of classes: letters has 26, balanced 47
    PaperDataset(
        "emnist",
        None,
        "any one set of EMNIST, https://www.nist.gov/itl/products-and-services/emnist-dataset",
        split="the source's own; which of its sets is meant is not stated",
    ),
    # fb, hub: card; train is the original's train and validation parts together
    PaperDataset("dtd", 47, "hub:tanganke/dtd", "CC BY 4.0 by the card of mcimpoi/dtd_split_1", 3_760, 1_880),
    # fb, hub
    PaperDataset("resisc45", 45, "hub:tanganke/resisc45", None, 18_900, 6_300),
    # fb, hub
    PaperDataset("sun397", 397, "hub:tanganke/sun397", None, 19_850, 19_850),
    # page: its paper (13 classes, 8,174 images)
    PaperDataset("kenyan_food13", 13, "KenyanFood13, https://github.com/monajalal/kenyan-food", split=FIFTH),
    # page
    PaperDataset("animal10n", 10, "https://dm.kaist.ac.kr/datasets/animal-10n/ (on request)", None, 50_000, 5_000),
    # hub: class list of a copy; 2,527 images from memory
    PaperDataset("garbage6", 6, "Kaggle asdasdasasdas/garbage-classification", split=FIFTH),
    # page: its paper, version of 2020-05-18; later versions have more classes
    PaperDataset(
        "fruits360",
        131,
        "Kaggle moltean/fruits (the version of 2020-05-18, 131 classes)",
        None,
        67_692,
        22_688,
        "the source's own: Training and Test",
    ),
)
