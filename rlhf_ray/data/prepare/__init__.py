"""stage=prepare_data: from files in many layouts to cleaned, blended and split sets in one layout.

`conversion/` and `layouts/` turn rows into samples, `cleaning/` drops or changes samples, `store`
keeps them on disk, and `prepare` runs the stage.
"""
