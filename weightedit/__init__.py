"""Edit neural networks in weight space, and optimize them, with equivariant metanetworks.

    import weightedit as we

What one wants to do, and the names for it (help(we.NAME) says more; each is imported when it is first used):

Store pictures as networks (INRs), keep them, load anything
    fit              pictures -> INRs, one small SIREN each; or Samples, values at places: sounds, distances, videos
    load             any file or folder that weightedit writes or reads: INRs, data sets, checkpoints, pictures, samples
    INRStack         N INRs of one architecture: .params, .render(), .at(coordinates), [index]; save_inrs writes them
    Convention       what an INR's inputs and outputs mean; FitOptions: how fit works
    load_images, load_picture, WeightSet, save_weight_set, split_by_image, CNNZoo      data sets

Edit networks by changing their weights
    edit             INRs -> INRs by learned steps towards operation(rendering); no editor is needed
    undo             edited INRs, or a file of them -> as they were before the last edit, to the bit
    Editor           Editor.from_pretrained("varied-multi")(inrs, "rotate", strength=0.5, steps=8, widen=2); never
                     worse than doing nothing; .unguarded(...) is the edit as it comes, for tables and trainings
    OPERATIONS       the operations by name; Operation makes one of your own
    refine, target_of, KFAC, LearnedKFAC, widen, mean_squared_errors                   the parts of it
    OneShotEditor, EditorOptions, PredictiveEditor, Predictor, PredictorConfig         to make and train editors

Optimize networks with a learned rule
    LearnedOptimizer LearnedOptimizer(model), or with any other rule, as a torch.optim.Optimizer
    make_rule        a fresh rule of any metanetwork for your network; LearnedRule, LearnedRuleConfig: by hand
    UpdateRule       what a rule is; by hand: SGD, Adam, AdamW, GeometricAdam, Muon; learned: MetanetRule, MLPRule
    optimizer_factory, register_with_higher, meta_gradient, ModuleRun                  in Trainer, in `higher`, unrolled

Apply a metanetwork to any network
    read             module -> what it is: its axes and their symmetries (NetworkSpec, GraphSpec)
    make_metanet     a fresh metanetwork by name (METANETS) for your network; PyGAdapter: any PyTorch Geometric model
    propose_delta    metanetwork, spec, parameters -> a change of the parameters; apply_delta adds it
    WeightSpacePredictor                                                               networks -> numbers
    GaugeGMN, GaugeGMNConfig, NeuralGraph, to_pyg, from_pyg, ragged_from_params        its parts, and PyTorch Geometric
    assert_equivariant, act, random_element, canonicalize                              symmetries, and the judge

Train what is trained here
    train, TrainOptions, TrainResult                                                   one loop for all of it
    ES, PES, TruncatedBackprop, Horizons, Unroll                                       meta-training

Errors: WeightEditError, a ValueError; of it ParamsError, SpecError, FileFormatError, NonFiniteError; and
TypeMismatchError, a TypeError. Each says what it got, what it expected, and what to do.

Names that from_pretrained, load and LearnedOptimizer take: a shipped checkpoint (`shipped()` lists them), a folder, or
owner/name on the Hugging Face hub. Everything else is in modules: weightedit.network, .graph, .metanet, .inr, .editing,
.optim, .metatrain, .data, .training, .files.
"""

from __future__ import annotations

__version__ = "0.1.0"

# Module -> its names. __init__.pyi says the same to type checkers.
_HOMES = {
    "data.cnn_zoo": "CNNZoo",
    "data.images": "load_images load_picture",
    "data.inr_files": "save_inrs",
    "data.weight_sets": "WeightSet save_weight_set split_by_image",
    "delta": "apply_delta propose_delta",
    "door": "edit fit read undo",
    "editing.curvature": "KFAC LearnedKFAC",
    "editing.editor": "Editor",
    "editing.evaluation": "mean_squared_errors",
    "editing.one_shot": "EditorOptions OneShotEditor",
    "editing.operations": "OPERATIONS Operation",
    "editing.predictive_editor": "PredictiveEditor",
    "editing.predictor": "Predictor PredictorConfig",
    "editing.refinement": "refine target_of",
    "errors": "FileFormatError NonFiniteError ParamsError SpecError TypeMismatchError WeightEditError",
    "files.location": "shipped",
    "graph.canonicalization": "canonicalize",
    "graph.neural_graph": "NeuralGraph",
    "graph.ragged": "from_pyg ragged_from_params to_pyg",
    "inr.convention": "Convention",
    "inr.fitting": "FitOptions",
    "inr.samples": "Samples",
    "inr.stack": "INRStack",
    "inr.widening": "widen",
    "loading": "load",
    "metanet.gauge_gmn.config": "GaugeGMNConfig",
    "metanet.gauge_gmn.network": "GaugeGMN",
    "metanet.pyg_adapter": "PyGAdapter",
    "metanet.registry": "METANETS make_metanet",
    "metatrain.estimators": "ES PES Horizons TruncatedBackprop",
    "metatrain.higher_unroll": "ModuleRun meta_gradient",
    "metatrain.unroll": "Unroll",
    "network.graph_spec": "GraphSpec",
    "network.spec": "NetworkSpec",
    "network.symmetry": "act random_element",
    "optim.hand_designed": "SGD Adam AdamW GeometricAdam",
    "optim.higher_bridge": "register_with_higher",
    "optim.learned_rule": "LearnedRule LearnedRuleConfig make_rule",
    "optim.metanet_rule": "MetanetRule",
    "optim.mlp_rule": "MLPRule",
    "optim.muon": "Muon",
    "optim.optimizer": "LearnedOptimizer optimizer_factory",
    "optim.rule": "UpdateRule",
    "prediction.predictor": "WeightSpacePredictor",
    "testing": "assert_equivariant",
    "training.loop": "TrainResult train",
    "training.plan": "TrainOptions",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it; imported once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
