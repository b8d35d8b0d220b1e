"""The papers of the methods as BibTeX, by the loss function that a run trained with, its adapter and its weights."""

from collections.abc import Mapping
from typing import Any

PAPERS = {
    "clavier2025shiq": """\
@inproceedings{clavier2025shiq,
  title = {{ShiQ}: Bringing back {Bellman} to {LLMs}},
  author = {Clavier, Pierre and Grinsztajn, Nathan and Avalos, Raphael and Flet-Berliac, Yannis and Ergun, Irem and
            Domingues, Omar D. and Tarassov, Eugene and Pietquin, Olivier and Richemond, Pierre H. and
            Strub, Florian and Geist, Matthieu},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  eprint = {2505.11081},
  archivePrefix = {arXiv}
}""",
    "fletberliac2024copg": """\
@inproceedings{fletberliac2024copg,
  title = {Contrastive Policy Gradient: Aligning {LLMs} on sequence-level scores in a supervised-friendly fashion},
  author = {Flet-Berliac, Yannis and Grinsztajn, Nathan and Strub, Florian and Wu, Bill and Choi, Eugene and
            Cremer, Chris and Ahmadian, Arash and Chandak, Yash and Gheshlaghi Azar, Mohammad and Pietquin, Olivier and
            Geist, Matthieu},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year = {2024},
  eprint = {2406.19185},
  archivePrefix = {arXiv}
}""",
    "rafailov2023dpo": """\
@inproceedings{rafailov2023dpo,
  title = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and
            Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  eprint = {2305.18290},
  archivePrefix = {arXiv}
}""",
    "richemond2024dro": """\
@misc{richemond2024dro,
  title = {Offline Regularised Reinforcement Learning for Large Language Models Alignment},
  author = {Richemond, Pierre Harvey and Tang, Yunhao and Guo, Daniel and Calandriello, Daniele and
            Gheshlaghi Azar, Mohammad and Rafailov, Rafael and Avila Pires, Bernardo and Tarassov, Eugene and
            Spangher, Lucas and Ellsworth, Will and Severyn, Aliaksei and Mallinson, Jonathan and Shani, Lior and
            Shamir, Gil and Joshi, Rishabh and Liu, Tianqi and Munos, Remi and Piot, Bilal},
  year = {2024},
  eprint = {2405.19107},
  archivePrefix = {arXiv}
}""",
    "tang2025agro": """\
@misc{tang2025agro,
  title = {{RL}-finetuning {LLMs} from on- and off-policy data with a single algorithm},
  author = {Tang, Yunhao and Cohen, Taco and Zhang, David W. and Valko, Michal and Munos, R{\\'e}mi},
  year = {2025},
  eprint = {2503.19612},
  archivePrefix = {arXiv}
}""",
    "cohen2025spo": """\
@misc{cohen2025spo,
  title = {Soft Policy Optimization: Online Off-Policy {RL} for Sequence Models},
  author = {Cohen, Taco and Zhang, David W. and Zheng, Kunhao and Tang, Yunhao and Munos, Remi and Synnaeve, Gabriel},
  year = {2025},
  eprint = {2503.05453},
  archivePrefix = {arXiv}
}""",
    "bartoldson2025tba": """\
@inproceedings{bartoldson2025tba,
  title = {Trajectory Balance with Asynchrony: Decoupling Exploration and Learning for Fast, Scalable {LLM}
           Post-Training},
  author = {Bartoldson, Brian and Venkatraman, Siddarth and Diffenderfer, James and Jain, Moksh and Ben-Nun, Tal and
            Lee, Seanie and Kim, Minsu and Obando-Ceron, Johan and Bengio, Yoshua and Kailkhura, Bhavya},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  eprint = {2503.18929},
  archivePrefix = {arXiv}
}""",
    "zhang2025gvpo": """\
@misc{zhang2025gvpo,
  title = {{GVPO}: Group Variance Policy Optimization for Large Language Model Post-Training},
  author = {Zhang, Kaichen and Hong, Yuzhong and Bao, Junwei and Jiang, Hongfei and Song, Yang and Hong, Dingqian and
            Xiong, Hui},
  year = {2025},
  eprint = {2504.19599},
  archivePrefix = {arXiv}
}""",
    "brantley2025astarpo": """\
@misc{brantley2025astarpo,
  title = {Accelerating {RL} for {LLM} Reasoning with Optimal Advantage Regression},
  author = {Brantley, Kiant{\\'e} and Chen, Mingyu and Gao, Zhaolin and Lee, Jason D. and Sun, Wen and Zhan, Wenhao and
            Zhang, Xuezhou},
  year = {2025},
  eprint = {2505.20686},
  archivePrefix = {arXiv}
}""",
    "gao2024rebel": """\
@misc{gao2024rebel,
  title = {{REBEL}: Reinforcement Learning via Regressing Relative Rewards},
  author = {Gao, Zhaolin and Chang, Jonathan D. and Zhan, Wenhao and Oertell, Owen and Swamy, Gokul and
            Brantley, Kiant{\\'e} and Joachims, Thorsten and Bagnell, J. Andrew and Lee, Jason D. and Sun, Wen},
  year = {2024},
  eprint = {2404.16767},
  archivePrefix = {arXiv}
}""",
    "yuan2025tbrm": """\
@inproceedings{yuan2025tbrm,
  title = {Trajectory {Bellman} Residual Minimization: A Simple Value-Based Method for {LLM} Reasoning},
  author = {Yuan, Yurun and Chen, Fan and Jia, Zeyu and Rakhlin, Alexander and Xie, Tengyang},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  eprint = {2505.15311},
  archivePrefix = {arXiv}
}""",
    "azar2024ipo": """\
@inproceedings{azar2024ipo,
  title = {A General Theoretical Paradigm to Understand Learning from Human Preferences},
  author = {Gheshlaghi Azar, Mohammad and Guo, Zhaohan Daniel and Piot, Bilal and Munos, Remi and Rowland, Mark and
            Valko, Michal and Calandriello, Daniele},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2024},
  eprint = {2310.12036},
  archivePrefix = {arXiv}
}""",
    "wang2024oreo": """\
@misc{wang2024oreo,
  title = {Offline Reinforcement Learning for {LLM} Multi-Step Reasoning},
  author = {Wang, Huaijie and Hao, Shibo and Dong, Hanze and Zhang, Shenao and Bao, Yilin and Yang, Ziran and Wu, Yi},
  year = {2024},
  eprint = {2412.16145},
  archivePrefix = {arXiv}
}""",
    "ethayarajh2024kto": """\
@inproceedings{ethayarajh2024kto,
  title = {{KTO}: Model Alignment as Prospect Theoretic Optimization},
  author = {Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe},
  booktitle = {International Conference on Machine Learning},
  year = {2024},
  eprint = {2402.01306},
  archivePrefix = {arXiv}
}""",
    "matrenok2025qrpo": """\
@inproceedings{matrenok2025qrpo,
  title = {Quantile Reward Policy Optimization: Alignment with Pointwise Regression and Exact Partition Functions},
  author = {Matrenok, Simon and Moalla, Skander and Gulcehre, Caglar},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  eprint = {2507.08068},
  archivePrefix = {arXiv}
}""",
    "schulman2017ppo": """\
@misc{schulman2017ppo,
  title = {Proximal Policy Optimization Algorithms},
  author = {Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg},
  year = {2017},
  eprint = {1707.06347},
  archivePrefix = {arXiv}
}""",
    "shao2024grpo": """\
@misc{shao2024grpo,
  title = {{DeepSeekMath}: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author = {Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and Bi, Xiao and
            Zhang, Haowei and Zhang, Mingchuan and Li, Y. K. and Wu, Y. and Guo, Daya},
  year = {2024},
  eprint = {2402.03300},
  archivePrefix = {arXiv}
}""",
    "ahmadian2024rloo": """\
@misc{ahmadian2024rloo,
  title = {Back to Basics: Revisiting {REINFORCE} Style Optimization for Learning from Human Feedback in {LLMs}},
  author = {Ahmadian, Arash and Cremer, Chris and Gall{\\'e}, Matthias and Fadaee, Marzieh and Kreutzer, Julia and
            Pietquin, Olivier and {\\"U}st{\\"u}n, Ahmet and Hooker, Sara},
  year = {2024},
  eprint = {2402.14740},
  archivePrefix = {arXiv}
}""",
    "ritter2026oapl": """\
@misc{ritter2026oapl,
  title = {{LLMs} Can Learn to Reason Via Off-Policy {RL}},
  author = {Ritter, Daniel and Oertell, Owen and Guo, Bradley and Chang, Jonathan and Brantley, Kiant{\\'e} and
            Sun, Wen},
  year = {2026},
  eprint = {2602.19362},
  archivePrefix = {arXiv}
}""",
    "bradley1952rank": """\
@article{bradley1952rank,
  title = {Rank Analysis of Incomplete Block Designs: {I}. The Method of Paired Comparisons},
  author = {Bradley, Ralph Allan and Terry, Milton E.},
  journal = {Biometrika},
  volume = {39},
  number = {3/4},
  pages = {324--345},
  year = {1952}
}""",
    "hu2022lora": """\
@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and
            Wang, Lu and Chen, Weizhu},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
  eprint = {2106.09685},
  archivePrefix = {arXiv}
}""",
    "dettmers2023qlora": """\
@inproceedings{dettmers2023qlora,
  title = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},
  author = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  eprint = {2305.14314},
  archivePrefix = {arXiv}
}""",
}
LOSSES = "shiqrun.losses."
METHODS = {
    "shiq": ("clavier2025shiq",),
    "shiq_ms": ("clavier2025shiq",),
    "shiq_tk": ("clavier2025shiq",),
    "shiq_init": ("clavier2025shiq",),
    "direct": ("clavier2025shiq",),
    "soft_q": ("clavier2025shiq",),
    "tbrm": ("yuan2025tbrm",),
    "copg": ("fletberliac2024copg",),
    "dpo": ("rafailov2023dpo",),
    "ipo": ("azar2024ipo",),
    "dro": ("richemond2024dro",),
    "dro_v": ("richemond2024dro",),
    "spo": ("cohen2025spo",),
    "spo_nonterminal": ("cohen2025spo",),
    "spo_advantage": ("cohen2025spo",),
    "oreo": ("wang2024oreo",),
    "kto": ("ethayarajh2024kto",),
    "qrpo": ("matrenok2025qrpo",),
    "ppo": ("schulman2017ppo",),
    "grpo": ("shao2024grpo",),
    "rloo": ("ahmadian2024rloo",),
    "oapl": ("ritter2026oapl",),
    "reward_model": ("bradley1952rank",),
    "sft": (),
}
"""Keys of PAPERS for each loss of `shiqrun.losses`; docs/methods.md names the same papers."""

NAMES = {
    "agro": ("tang2025agro",),
    "tba": ("bartoldson2025tba",),
    "gvpo": ("zhang2025gvpo",),
    "rebel": ("gao2024rebel",),
    "a2po": ("brantley2025astarpo",),
}
"""Keys of PAPERS for the choices of `algo=` that are another paper's name for one of the losses."""


def papers(config: Mapping[str, Any]) -> list[str] | None:
    """Return the BibTeX entries of what a run used, by its config; None where its loss is not one of shiqrun's.

    Args:
        config: of the run, by dotted keys.
    """
    target = str(config.get("algo._target_", ""))
    if not target.startswith(LOSSES):
        return None
    name = str(config.get("algo.name", ""))
    keys = list(NAMES.get(name) or METHODS.get(target.removeprefix(LOSSES), ()))
    if config.get("algo.baseline") == "group_mean" and name not in NAMES:
        keys.append("tang2025agro")
    if config.get("model.lora_r"):
        keys.append("hu2022lora")
    if config.get("model.quantize"):
        keys.append("dettmers2023qlora")
    return [PAPERS[key] for key in keys]


def software(version: str, commit: str | None) -> str:
    """Return the BibTeX entry of shiqrun in the version and at the git commit that made a run."""
    note = f"version {version}" + (f", git commit {commit}" if commit else "")
    return f"""\
@software{{shiqrun,
  title = {{shiqrun: reinforcement learning of language models from logged data}},
  note = {{{note}}}
}}"""
