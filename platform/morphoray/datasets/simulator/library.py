"""The simulator's perturbations: real compounds in families of close analogs, and genes in pathways.

The SMILES and the family names are real; which phenotype a family causes is invented (effects.py).
"""

from dataclasses import dataclass

CONTROL = "dmso"
INACTIVE = "inactive"


@dataclass(frozen=True)
class Compound:
    """A compound, and the family whose members share a mechanism."""

    name: str
    family: str
    smiles: str


_SMILES = {
    "statin": {
        "lovastatin": "CCC(C)C(=O)OC1CC(C)C=C2C1C(C(C=C2)C)CCC3CC(CC(=O)O3)O",
        "mevastatin": "CCC(C)C(=O)OC1CCC=C2C1C(C(C=C2)C)CCC3CC(CC(=O)O3)O",
        "simvastatin": "CCC(C)(C)C(=O)OC1CC(C)C=C2C1C(C(C=C2)C)CCC3CC(CC(=O)O3)O",
        "pravastatin": "CCC(C)C(=O)OC1CC(O)C=C2C1C(C(C=C2)C)CCC(O)CC(O)CC(=O)O",
    },
    "fluoroquinolone": {
        "ciprofloxacin": "O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O",
        "norfloxacin": "CCn1cc(C(=O)O)c(=O)c2cc(F)c(N3CCNCC3)cc21",
        "pefloxacin": "CCn1cc(C(=O)O)c(=O)c2cc(F)c(N3CCN(C)CC3)cc21",
        "ofloxacin": "CC1COc2c(N3CCN(C)CC3)c(F)cc3c(=O)c(C(=O)O)cn1c23",
        "enrofloxacin": "CCN1CCN(CC1)c1cc2n(cc(C(=O)O)c(=O)c2cc1F)C1CC1",
    },
    "benzodiazepine": {
        "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
        "temazepam": "CN1C(=O)C(O)N=C(c2ccccc2)c2cc(Cl)ccc21",
        "nordazepam": "O=C1CN=C(c2ccccc2)c2cc(Cl)ccc2N1",
        "oxazepam": "O=C1Nc2ccc(Cl)cc2C(c2ccccc2)=NC1O",
        "lorazepam": "O=C1Nc2ccc(Cl)cc2C(c2ccccc2Cl)=NC1O",
    },
    "corticosteroid": {
        "hydrocortisone": "CC12CCC(=O)C=C1CCC1C2C(O)CC2(C)C1CCC2(O)C(=O)CO",
        "prednisolone": "CC12C=CC(=O)C=C1CCC1C2C(O)CC2(C)C1CCC2(O)C(=O)CO",
        "cortisone": "CC12CCC(=O)C=C1CCC1C2C(=O)CC2(C)C1CCC2(O)C(=O)CO",
        "methylprednisolone": "CC1CC2C3CCC(O)(C(=O)CO)C3(C)CC(O)C2C2(C)C=CC(=O)C=C12",
        "dexamethasone": "CC1CC2C3CCC4=CC(=O)C=CC4(C)C3(F)C(O)CC2(C)C1(O)C(=O)CO",
    },
    "sulfonamide": {
        "sulfadiazine": "Nc1ccc(S(=O)(=O)Nc2ncccn2)cc1",
        "sulfamerazine": "Cc1ccnc(NS(=O)(=O)c2ccc(N)cc2)n1",
        "sulfapyridine": "Nc1ccc(S(=O)(=O)Nc2ccccn2)cc1",
        "sulfamethazine": "Cc1cc(C)nc(NS(=O)(=O)c2ccc(N)cc2)n1",
        "sulfamethoxazole": "Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1",
    },
    "nucleoside": {
        "cytidine": "Nc1ccn(C2OC(CO)C(O)C2O)c(=O)n1",
        "azacitidine": "Nc1ncn(C2OC(CO)C(O)C2O)c(=O)n1",
        "uridine": "O=c1ccn(C2OC(CO)C(O)C2O)c(=O)[nH]1",
        "adenosine": "Nc1ncnc2c1ncn2C1OC(CO)C(O)C1O",
    },
    INACTIVE: {
        "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
        "theophylline": "Cn1c(=O)c2[nH]cnc2n(C)c1=O",
        "theobromine": "Cn1cnc2c1c(=O)[nH]c(=O)n2C",
    },
}

COMPOUNDS: dict[str, Compound] = {
    name: Compound(name, family, smiles)
    for family, members in _SMILES.items()
    for name, smiles in members.items()
}

# Fourteen with the control: three families of two seen analogs and one unseen, three single compounds.
DEFAULT_COMPOUNDS = (
    "lovastatin", "mevastatin", "simvastatin", "ciprofloxacin", "diazepam", "temazepam", "nordazepam",
    "prednisolone", "sulfadiazine", "sulfamerazine", "sulfapyridine", "cytidine", "caffeine",
)  # fmt: skip
DEFAULT_UNSEEN_COMPOUNDS = ("simvastatin", "nordazepam", "sulfapyridine")

PATHWAYS: dict[str, tuple[str, ...]] = {
    "rho": ("RHOA", "RAC1", "CDC42", "PAK1", "ROCK1"),
    "dna-damage": ("ATM", "ATR", "CHEK1", "TOP2A", "BRCA1"),
    "mitosis": ("KIF11", "PLK1", "AURKA", "BUB1", "TTK"),
    "microtubule": ("TUBB", "STMN1", "MAP4", "KIF2C", "CLASP1"),
    "er-stress": ("XBP1", "ATF6", "ERN1", "HSPA5", "EIF2AK3"),
    "tgf-beta": ("SMAD2", "SMAD3", "SMAD4", "TGFBR1", "SNAI1"),
    INACTIVE: ("OR1A1", "OR2J3", "OR5A1"),
}

DEFAULT_GENES = (
    "RHOA", "RAC1", "CDC42", "TOP2A", "KIF11", "PLK1", "AURKA", "TUBB", "XBP1", "ATF6", "HSPA5", "SMAD3",
    "OR1A1",
)  # fmt: skip
DEFAULT_UNSEEN_GENES = ("CDC42", "AURKA", "HSPA5")
