"""timm: the smallest model of every family, at the smallest input that it accepts.

A family is a module of `timm.models`; where a module registers several architectures under different names, the
smallest of each is here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entries import Entry, image

NAMES = """
beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 eca_botnext26ts_256 halo2botnet50ts_256 halonet_h1
haloregnetz_b lambda_resnet26t lamhalobotnet50ts_256 sebotnet33ts_256 sehalonet33ts bat_resnext26ts eca_resnext26ts
gcresnet33ts gcresnext26ts gernet_s mobileone_s1 regnetz_b16 repvgg_a0 resnet32ts resnext26ts seresnet33ts
seresnext26ts cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano
crossvit_tiny_240 csatv2 cs3darknet_focus_s cspdarknet53 cspresnet50 cspresnext50 darknet17 darknetaa53 sedarknet21
cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 densenetblur121d dla46x_c dpn48b
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 tf_efficientnetv2_b0 fbnetc_100
gc_efficientnetv2_rw_t mixnet_s mnasnet_small mobilenet_edgetpu_100 mobilenetv2_035 semnasnet_050 spnasnet_100
nasnetalarge pnasnet5large
tinynet_e efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 ghostnetv3_050 hardcorenas_b
hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
coatnet_pico_rw_224 coatnext_nano_rw_224 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256
caformer_s18 convformer_s18 poolformer_s12 poolformerv2_s12 gmixer_12_224 gmlp_ti16_224 mixer_s16_224 resmlp_12_224
fbnetv3_b lcnet_035 mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mobilevitv2_050 mvitv2_tiny
naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0 nfnet_l0 pit_ti_224
pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvit_m1
res2next50 resnest14d ecaresnet26t ecaresnetlight ecaresnext26t_32x4d resnet10t resnetaa34d resnetblur18 resnetrs50
resnext50_32x4d seresnet18 seresnetaa50d seresnext26t_32x4d wide_resnet50_2 resnetv2_18 rexnet_100 rexnetr_100
selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 skresnext50_32x4d starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11 visformer_tiny beit3_base_patch16_224 flexivit_small vit_tiny_patch16_224
vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
eca_vovnet39b ese_vovnet19b_slim_dw vovnet39a legacy_xception xception41p xcit_nano_12_p8_224
"""

_OPTIONS: dict[str, dict[str, Any]] = {"deepseek_vit_412m": {"depth": 2}}
_SIDES = (64, 96, 128, 160)


def entries() -> list[Entry]:
    """One entry per name; families of the installed timm that none of them belongs to come as entries that fail."""
    return [Entry("timm", name, _family(name), partial(_build, name)) for name in (*NAMES.split(), *_missing())]


def _family(name: str) -> str:
    import timm

    return str(timm.model_entrypoint(name).__module__.rsplit(".", 1)[1]) if timm.is_model(name) else name


def _missing() -> list[str]:
    """Families without a name in the list, so that a new timm shows what is not looked at."""
    import timm

    return sorted(set(timm.list_modules()) - {_family(name) for name in NAMES.split()})


def _build(name: str) -> tuple[nn.Module, Any]:
    import timm

    options = _OPTIONS.get(name, {})
    default: tuple[int, int, int] = timm.get_pretrained_cfg(name).input_size
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    failure: Exception | None = None
    for side in (*_SIDES, default[-1]):
        inputs = image(2 if side < 200 else 1, 3, side, side)
        try:
            resized = {"img_size": side} if fixed and side != default[-1] else {}
            model = timm.create_model(name, pretrained=False, **options, **resized)
            with torch.no_grad():
                model.train()(inputs)
                model.eval()(inputs)
        except Exception as cause:  # noqa: BLE001 - whatever it is, the next larger input is tried
            failure = cause
            continue
        return model, inputs
    raise RuntimeError(f"no input size works: {failure}") from failure
