"""Image encoders: InternViT, ConvNeXt, any timm model."""
