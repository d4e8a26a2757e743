from fusion_workbench.modules.encoders.families import Family, register_family

VIT_MSN = register_family("vit_msn", Family("ViTMSNModel", "layers", models="facebook/vit-msn-small"))
